package scenario

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Schema is the JSON Schema of a scenario file, for editors; made of the same
// table that Parse uses, which also checks what a schema cannot say.
func Schema() ([]byte, error) {
	var s Spec
	root := objectOf(s.fields())
	properties := root["properties"].(map[string]any)
	properties["extra"] = map[string]any{"type": "array", "items": objectOf((&Stratum{}).fields()), "description": "sends outside the fan-out mean"}
	properties["faults"] = map[string]any{"type": "array", "items": objectOf((&Fault{}).fields()), "description": "processes killed and stores emptied during steady"}
	properties["zones"] = map[string]any{"type": "array", "items": objectOf((&Zone{}).fields()), "description": "places; between two of them there is their link"}
	properties["links"] = map[string]any{"type": "array", "items": objectOf((&Link{}).fields()), "description": "distance between zones, one for each pair"}
	properties["regions"] = map[string]any{"type": "array", "items": objectOf((&Region{}).fields()), "description": "parts of the users with a clock of their own"}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "throng scenario"
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("schema of scenarios: %w", err)
	}
	return append(out, '\n'), nil
}

// objectOf is the schema of an object with these fields, sections as objects.
func objectOf(fields []field) map[string]any {
	properties := map[string]any{}
	object := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	var required []string
	sections := map[string][]field{}
	for _, f := range fields {
		if section, rest, ok := strings.Cut(f.path, "."); ok {
			f.path = rest
			sections[section] = append(sections[section], f)
			continue
		}
		properties[f.path] = f.schema()
		if f.required {
			required = append(required, f.path)
		}
	}
	for name, inside := range sections {
		properties[name] = objectOf(inside)
	}
	if required != nil {
		object["required"] = required
	}
	return object
}

// schema is of one value.
func (f *field) schema() map[string]any {
	out := map[string]any{"description": f.doc + " (" + f.allowed() + ")"}
	if f.def != "" {
		out["default"] = f.def
	}
	switch f.kind {
	case kindEnum:
		out["enum"] = f.enum
	case kindInt, kindNumber:
		out["type"] = map[bool]string{true: "integer", false: "number"}[f.kind == kindInt]
		out["minimum"], out["maximum"] = f.min, f.max
		if v, err := strconv.ParseFloat(f.def, 64); err == nil {
			out["default"] = v
		}
	case kindPlaces:
		out["type"], out["items"] = "array", map[string]any{"type": "string"}
	case kindCPUSet:
		out["type"] = []string{"string", "integer"}
	case kindScale:
		out["type"] = []string{"string", "number"}
	default:
		out["type"] = "string"
	}
	return out
}
