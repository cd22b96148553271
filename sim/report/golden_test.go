package report

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// golden compares got with a file; UPDATE=1 writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s line %d:\n got %q\nwant %q\n(UPDATE=1 go test writes it anew)", name, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s: %d lines, want %d", name, len(g), len(w))
}

func TestGolden(t *testing.T) {
	computes(t)
	r := judged(t, recorded(t))
	var plain, coloured bytes.Buffer
	if err := r.Terminal(&plain, false); err != nil {
		t.Fatal(err)
	}
	if err := r.Terminal(&coloured, true); err != nil {
		t.Fatal(err)
	}
	golden(t, "terminal.golden", plain.String())
	golden(t, "terminal-colour.golden", coloured.String())
	golden(t, "report.md.golden", r.markdown())
	if strings.Contains(plain.String(), "\x1b") {
		t.Error("plain output has escape sequences")
	}
}

// TestGoldenFailure is what a broken run looks like.
func TestGoldenFailure(t *testing.T) {
	computes(t)
	dir := recorded(t)
	path := filepath.Join(dir, "audit.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var a map[string]any
	if err := json.Unmarshal(data, &a); err != nil {
		t.Fatal(err)
	}
	a["lost"], a["proved"] = 2, a["proved"].(float64)-2
	if data, err = json.Marshal(a); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	r := judged(t, dir)
	if r.Verdict != Fail {
		t.Fatalf("%s: %s", r.Verdict, r.Summary)
	}
	golden(t, "failed.md.golden", r.markdown())
}

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile("result.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate checks result.json of a folder against the schema.
func validate(t *testing.T, dir string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, FileResult))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema(t).Validate(v); err != nil {
		t.Error(err)
	}
}

func resultFollowsItsSchema(t *testing.T, dir string) {
	validate(t, dir)
	// A schema that takes anything proves nothing.
	for _, bad := range []string{`{}`, `{"schema_version":3}`} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(bad))
		if err != nil {
			t.Fatal(err)
		}
		if schema(t).Validate(v) == nil {
			t.Errorf("the schema takes %s", bad)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, FileResult))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(bytes.Replace(data, []byte(`"verdict": "pass"`), []byte(`"verdict": "splendid"`), 1)))
	if err != nil {
		t.Fatal(err)
	}
	if schema(t).Validate(v) == nil {
		t.Error(`the schema takes the verdict "splendid"`)
	}
}
