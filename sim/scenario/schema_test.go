package scenario

import (
	"bytes"
	"os"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const schemaFile = "../../scenarios/scenario.schema.json"

// The committed schema is the one of the table, and accepts every scenario.
// UPDATE=1 go test ./sim/scenario writes it.
func TestSchema(t *testing.T) {
	want, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("scenarios/scenario.schema.json is not of this code: UPDATE=1 go test ./sim/scenario")
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("scenario.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("scenario.json")
	if err != nil {
		t.Fatal(err)
	}
	valid := func(file string, data []byte) error {
		text, err := yaml.YAMLToJSON(data)
		if err != nil {
			t.Fatal(err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		return schema.Validate(value)
	}
	for _, name := range []string{"groups_peak", "smoke", "direct_steady"} {
		data, err := os.ReadFile("../../scenarios/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if err := valid(name, data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if valid("bad", []byte("name: x\nquestion: what is it like?\nsclae: 1\n")) == nil {
		t.Error("an unknown field was accepted")
	}
}
