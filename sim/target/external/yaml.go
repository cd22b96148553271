package external

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"throng/sim/scenario"
)

// places is where each given field stands.
type places map[string]*token.Position

// reader walks one file and collects its mistakes.
type reader struct {
	file   string
	getenv func(string) string
	errs   scenario.Errors
	places places
}

// field is one field of a mapping. read takes its value and returns what is
// wrong with it: "" nothing, else what stood there, for people.
type field struct {
	name, allowed string
	read          func(n ast.Node, path string) string
}

// fail notes a mistake at the field's place, or the nearest above it.
func (r *reader) fail(path, given, allowed, hint string) {
	e := &scenario.FieldError{File: r.file, Line: 1, Col: 1, Field: path, Given: given, Allowed: allowed, Hint: hint}
	for at := path; at != ""; at = at[:max(0, strings.LastIndexAny(at, ".["))] {
		if pos := r.places[at]; pos != nil {
			e.Line, e.Col = pos.Line, pos.Column
			break
		}
	}
	r.errs = append(r.errs, e)
}

// parse returns the mapping of the only document.
func (r *reader) parse(data []byte) (*ast.MappingNode, error) {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		var se *yaml.SyntaxError
		if errors.As(err, &se) && se.Token != nil {
			p := se.Token.Position
			return nil, scenario.Errors{{File: r.file, Line: p.Line, Col: p.Column, Given: strconv.Quote(se.Token.Value), Allowed: "YAML", Hint: se.Message}}
		}
		return nil, scenario.Errors{{File: r.file, Line: 1, Col: 1, Given: "what is no YAML", Allowed: "YAML", Hint: err.Error()}}
	}
	if len(file.Docs) == 1 && file.Docs[0].Body != nil {
		if m := asMapping(file.Docs[0].Body); m != nil {
			return m, nil
		}
	}
	return nil, scenario.Errors{{File: r.file, Line: 1, Col: 1, Given: "no mapping", Allowed: "one YAML document of field: value lines"}}
}

func asMapping(n ast.Node) *ast.MappingNode {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n
	case *ast.MappingValueNode:
		return ast.Mapping(n.GetToken(), false, n)
	}
	return nil
}

// mapping reads the fields of a mapping; what is none of them is a mistake.
func (r *reader) mapping(m *ast.MappingNode, prefix string, fields []field) {
	for _, v := range m.Values {
		key := v.Key.GetToken().Value
		path := prefix + key
		r.places[path] = v.Key.GetToken().Position
		var names []string
		known := false
		for _, f := range fields {
			names = append(names, f.name)
			if f.name != key {
				continue
			}
			known = true
			if wrong := f.read(v.Value, path); wrong != "" {
				r.places[path] = v.Value.GetToken().Position
				r.fail(path, wrong, f.allowed, "")
			}
		}
		if !known {
			r.fail(path, "an unknown field", strings.Join(names, ", "), "")
		}
	}
}

// oneOf checks that at most one of some fields is given, or exactly one.
func (r *reader) oneOf(what string, required bool, names ...string) {
	var given []string
	for _, n := range names {
		if r.places[n] != nil {
			given = append(given, n)
		}
	}
	switch {
	case len(given) > 1:
		r.fail(given[1], "both "+strings.Join(given, " and ")+" "+what, "one of "+strings.Join(names, ", "), "")
	case len(given) == 0 && required:
		r.fail(names[0], "nothing "+what, "one of "+strings.Join(names, ", "), "required")
	}
}

// scalarText is the text of a scalar value; false for anything else.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// given is what stood in the file, for a person.
func given(n ast.Node) string {
	if s, ok := scalarText(n); ok {
		if r := []rune(s); len(r) > 60 {
			s = string(r[:57]) + "..."
		}
		return strconv.Quote(s)
	}
	switch n.(type) {
	case *ast.NullNode:
		return "nothing"
	case *ast.SequenceNode:
		return "a list"
	}
	return "a mapping"
}

// scalar reads a value that set takes or not.
func scalar(set func(string) bool) func(ast.Node, string) string {
	return func(n ast.Node, _ string) string {
		if s, ok := scalarText(n); ok && set(s) {
			return ""
		}
		return given(n)
	}
}

func text(to *string, ok func(string) bool) func(ast.Node, string) string {
	return scalar(func(s string) bool { *to = s; return ok(s) })
}

func flag(to *bool) func(ast.Node, string) string {
	return scalar(func(s string) bool { *to = s == "true"; return s == "true" || s == "false" })
}

func number(to *float64) func(ast.Node, string) string {
	return scalar(func(s string) (ok bool) {
		v, err := strconv.ParseFloat(s, 64)
		*to = v
		return err == nil && v > 0 && v < 1e9
	})
}

func integer(to *int, lo, hi int) func(ast.Node, string) string {
	return scalar(func(s string) bool {
		v, err := strconv.Atoi(s)
		*to = v
		return err == nil && v >= lo && v <= hi
	})
}

// list reads a list of texts. Each wrong one is a mistake of its own.
func (r *reader) list(to *[]string, ok func(string) bool) func(ast.Node, string) string {
	return func(n ast.Node, path string) string {
		seq, is := n.(*ast.SequenceNode)
		if !is || len(seq.Values) == 0 {
			return given(n)
		}
		for i, v := range seq.Values {
			at := fmt.Sprintf("%s[%d]", path, i)
			r.places[at] = v.GetToken().Position
			s, scalar := scalarText(v)
			if !scalar || !ok(s) {
				return given(v) + " at " + at
			}
			*to = append(*to, s)
		}
		return ""
	}
}

// texts reads a mapping of texts.
func (r *reader) texts(to map[string]string) func(ast.Node, string) string {
	return func(n ast.Node, _ string) string {
		m := asMapping(n)
		if m == nil {
			return given(n)
		}
		for _, v := range m.Values {
			s, ok := scalarText(v.Value)
			if !ok {
				return given(v.Value)
			}
			to[v.Key.GetToken().Value] = s
		}
		return ""
	}
}

func (r *reader) instances(f *File) func(ast.Node, string) string {
	return func(n ast.Node, path string) string {
		seq, ok := n.(*ast.SequenceNode)
		if !ok {
			return given(n)
		}
		for i, v := range seq.Values {
			at := fmt.Sprintf("%s[%d]", path, i)
			m := asMapping(v)
			if m == nil {
				return given(v) + " at " + at
			}
			r.places[at] = v.GetToken().Position
			in := Instance{}
			r.mapping(m, at+".", r.instanceFields(&in))
			f.Instances = append(f.Instances, in)
		}
		return ""
	}
}

// secret reads a value that is never repeated in an error.
func (r *reader) secret(set func(string) error) func(ast.Node, string) string {
	return func(n ast.Node, _ string) string {
		s, ok := scalarText(n)
		if !ok {
			return given(n)
		}
		if err := set(s); err != nil {
			return "what is no key: " + err.Error()
		}
		return ""
	}
}

// fromEnv reads the environment variable that the value names.
func (r *reader) fromEnv(set func(string) error) func(ast.Node, string) string {
	return func(n ast.Node, _ string) string {
		name, ok := scalarText(n)
		if !ok {
			return given(n)
		}
		s := r.getenv(name)
		if s == "" {
			return fmt.Sprintf("%q, which is not set", name)
		}
		if err := set(strings.TrimSpace(s)); err != nil {
			return fmt.Sprintf("%q: %v", name, err)
		}
		return ""
	}
}

// fromFile reads the file that the value names.
func (r *reader) fromFile(set func(string) error) func(ast.Node, string) string {
	return func(n ast.Node, _ string) string {
		name, ok := scalarText(n)
		if !ok || name == "" {
			return given(n)
		}
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(r.file), path)
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = set(strings.TrimSpace(string(data)))
		}
		if err != nil {
			return fmt.Sprintf("%q: %v", name, err)
		}
		return ""
	}
}
