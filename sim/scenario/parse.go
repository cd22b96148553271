package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Parse reads a scenario; name stands in errors as the file's name. Everything
// that is wrong is collected into one Errors.
func Parse(name string, data []byte) (*Spec, error) {
	p := &reader{file: name, places: map[string]*token.Position{}}
	s := &Spec{}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, p.syntax(err)
	}
	for _, f := range s.fields() {
		if f.def != "" && !f.set(f.def) {
			return nil, fmt.Errorf("default %q of %s is not allowed by its own range", f.def, f.path)
		}
	}
	root := rootMapping(file)
	if root == nil {
		return nil, Errors{{File: name, Line: 1, Col: 1, Given: "no mapping", Allowed: "one YAML document of field: value lines"}}
	}
	p.mapping(root, "", s.fields(), map[string]func(path string, item *ast.MappingNode){
		"extra": func(path string, item *ast.MappingNode) {
			var x Stratum
			p.item(item, path, x.fields())
			s.Extra = append(s.Extra, x)
		},
		"faults": func(path string, item *ast.MappingNode) {
			var x Fault
			p.item(item, path, x.fields())
			s.Faults = append(s.Faults, x)
		},
		"zones": func(path string, item *ast.MappingNode) {
			var x Zone
			p.item(item, path, x.fields())
			s.Zones = append(s.Zones, x)
		},
		"regions": func(path string, item *ast.MappingNode) {
			var x Region
			p.item(item, path, x.fields())
			s.Regions = append(s.Regions, x)
		},
		"links": func(path string, item *ast.MappingNode) {
			var x Link
			p.item(item, path, x.fields())
			s.Links = append(s.Links, x)
		},
	})
	if len(p.errs) == 0 {
		p.consistent(s)
	}
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	return s, nil
}

// rootMapping is the mapping of the only document, nil if there is none.
func rootMapping(file *ast.File) *ast.MappingNode {
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil
	}
	return asMapping(file.Docs[0].Body)
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

// reader walks one file and collects its mistakes.
type reader struct {
	file   string
	errs   Errors
	places map[string]*token.Position // where each given field stands
}

func (p *reader) fail(pos *token.Position, path, given, allowed, hint string) {
	e := &FieldError{File: p.file, Field: path, Given: given, Allowed: allowed, Hint: hint}
	if pos != nil {
		e.Line, e.Col = pos.Line, pos.Column
	}
	p.errs = append(p.errs, e)
}

// syntax turns the parser's error into ours.
func (p *reader) syntax(err error) error {
	var se *yaml.SyntaxError
	if errors.As(err, &se) && se.Token != nil {
		p.fail(se.Token.Position, "", strconv.Quote(short(se.Token.Value)), "YAML", se.Message)
		return p.errs
	}
	return Errors{{File: p.file, Line: 1, Col: 1, Given: "what is no YAML", Allowed: "YAML", Hint: err.Error()}}
}

// mapping reads the fields below prefix, and at the top the lists.
func (p *reader) mapping(m *ast.MappingNode, prefix string, fields []field, lists map[string]func(string, *ast.MappingNode)) {
	p.places[prefix] = m.GetToken().Position
	for _, v := range m.Values {
		key, pos := v.Key.GetToken().Value, v.Key.GetToken().Position
		path := prefix + key
		p.places[path] = pos
		if f := find(fields, path); f != nil {
			if f.kind == kindPlaces {
				p.placesOf(v.Value, f, path)
			} else {
				p.scalar(v.Value, f, path)
			}
			continue
		}
		if add := lists[path]; add != nil {
			p.list(v.Value, path, add)
			continue
		}
		if hasSection(fields, path) {
			if sub := asMapping(v.Value); sub != nil {
				p.mapping(sub, path+".", fields, nil)
			} else {
				p.fail(pos, path, given(v.Value), "a mapping with "+strings.Join(names(fields, path+".", nil), ", "), "")
			}
			continue
		}
		allowed := names(fields, prefix, lists)
		p.fail(pos, path, "an unknown field", strings.Join(allowed, ", "), didYouMean(key, allowed))
	}
	p.missing(prefix, fields, m)
}

// missing reports required fields directly below prefix that were not given.
func (p *reader) missing(prefix string, fields []field, m *ast.MappingNode) {
	for i := range fields {
		f := &fields[i]
		rest, ok := strings.CutPrefix(f.path, prefix)
		if ok && f.required && !strings.Contains(rest, ".") && p.places[f.path] == nil {
			p.fail(m.GetToken().Position, f.path, "nothing", f.allowed(), "required")
		}
	}
}

// scalar reads one value.
func (p *reader) scalar(n ast.Node, f *field, path string) {
	text, ok := scalarText(n)
	if !ok || !f.set(text) {
		hint := ""
		if f.kind == kindEnum {
			hint = didYouMean(text, f.enum)
		}
		p.fail(n.GetToken().Position, path, given(n), f.allowed(), hint)
	}
}

// list reads a sequence of mappings.
func (p *reader) list(n ast.Node, path string, add func(string, *ast.MappingNode)) {
	if _, ok := n.(*ast.NullNode); ok {
		return
	}
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		p.fail(n.GetToken().Position, path, given(n), "a list", "")
		return
	}
	for i, v := range seq.Values {
		at := fmt.Sprintf("%s[%d].", path, i)
		if m := asMapping(v); m != nil {
			add(at, m)
			continue
		}
		p.fail(v.GetToken().Position, strings.TrimSuffix(at, "."), given(v), "a mapping", "")
	}
}

// item reads one element of a list.
func (p *reader) item(m *ast.MappingNode, prefix string, fields []field) {
	for i := range fields {
		if fields[i].def != "" {
			fields[i].set(fields[i].def)
		}
		fields[i].path = prefix + fields[i].path
	}
	p.mapping(m, prefix, fields, nil)
}

// consistent checks what concerns several fields.
func (p *reader) consistent(s *Spec) {
	r := s.Resolved()
	at := func(path string) *token.Position {
		for path != "" && p.places[path] == nil {
			path = path[:max(0, strings.LastIndex(path, "."))]
		}
		return p.places[path]
	}
	if r.Users < 100 {
		p.fail(at("scale"), "scale", fmt.Sprintf("%s, %d users", scaleText(s.Scale), r.Users), "at least 100 users", "or set rates.users")
	}
	if r.Connections > float64(r.Users) {
		p.fail(at("rates.logins_per_s"), "rates", fmt.Sprintf("%.0f sockets for %d users", r.Connections, r.Users), "logins_per_s x mean_session of at most rates.users", "")
	}
	for i, x := range s.Extra {
		path := fmt.Sprintf("extra[%d].", i)
		if int64(x.GroupSize) > r.Users {
			p.fail(at(path+"group_size"), path+"group_size", strconv.Itoa(x.GroupSize), fmt.Sprintf("at most the %d users", r.Users), "")
		}
		if span := map[string]float64{"warmup": s.Phases.WarmupS, "steady": s.Phases.SteadyS, "spike": s.Phases.SpikeS}[x.Phase]; span <= 0 {
			p.fail(at(path+"phase"), path+"phase", x.Phase, "a phase that lasts longer than 0s", "")
		}
	}
	if s.Infrastructure.Brokers == 2 {
		p.fail(at("infrastructure.brokers"), "infrastructure.brokers", "2", "1 or 3", "two are no safer than one")
	}
	p.consistentFaults(s, at)
	p.consistentZones(s, at)
	p.consistentRegions(s, at)
}

// consistentFaults checks that each fault does one thing to what there is.
func (p *reader) consistentFaults(s *Spec, at func(string) *token.Position) {
	counts := s.instances()
	for i, f := range s.Faults {
		path := fmt.Sprintf("faults[%d].", i)
		if f.At.Seconds() >= s.Phases.SteadyS {
			p.fail(at(path+"at"), path+"at", f.At.String(), "less than phases.steady, "+seconds(s.Phases.SteadyS), "")
		}
		if (f.Kill == "") == (f.Flush == "") {
			given := map[bool]string{true: "neither kill nor flush", false: "both kill and flush"}[f.Kill == ""]
			p.fail(at(path), strings.TrimSuffix(path, "."), given, "one of kill, flush", "")
			continue
		}
		what, _, _ := strings.Cut(f.What(), " ")
		if role, n := f.Target(); n >= counts[role] {
			p.fail(at(path+what), path+what, f.Kill+f.Flush, fmt.Sprintf("an instance below %d, see topology and infrastructure", counts[role]), "")
		}
		if f.Flush != "" && p.places[path+"restart_after"] != nil {
			p.fail(at(path+"restart_after"), path+"restart_after", f.RestartAfter.String(), "nothing beside flush", "")
		}
	}
}

// YAML is the resolved scenario, in a fixed order, with every field written out
// but those for containers that nobody has set; Parse of it gives an equal Spec.
func (s *Spec) YAML() []byte {
	var b bytes.Buffer
	c := *s
	var open []string // sections
	for _, f := range c.fields() {
		if f.sparse && f.isDefault() {
			continue
		}
		parts := strings.Split(f.path, ".")
		sections, name := parts[:len(parts)-1], parts[len(parts)-1]
		for depth, sec := range sections {
			if depth >= len(open) || open[depth] != sec {
				fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), sec)
				open = append(open[:depth:depth], sec)
			}
		}
		open = open[:len(sections)]
		fmt.Fprintf(&b, "%s%s: %s\n", strings.Repeat("  ", len(sections)), name, f.text())
	}
	writeList(&b, "extra", c.Extra, func(x *Stratum) []field { return x.fields() })
	writeList(&b, "faults", c.Faults, func(x *Fault) []field { return x.fields() })
	writeList(&b, "zones", c.Zones, func(x *Zone) []field { return x.fields() })
	writeList(&b, "links", c.Links, func(x *Link) []field { return x.fields() })
	writeList(&b, "regions", c.Regions, func(x *Region) []field { return x.fields() })
	return b.Bytes()
}

func writeList[T any](b *bytes.Buffer, name string, items []T, fields func(*T) []field) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(b, "%s:\n", name)
	for _, x := range items {
		lead := "  - "
		for _, f := range fields(&x) {
			if f.sparse && f.isDefault() {
				continue
			}
			fmt.Fprintf(b, "%s%s: %s\n", lead, f.path, f.text())
			lead = "    "
		}
	}
}
