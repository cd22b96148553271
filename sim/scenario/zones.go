package scenario

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// Zone is a place of a deployment. What is in one zone is next to each other;
// between two zones there is their Link.
type Zone struct {
	Name   string
	Region string // of the world; the zones of one count as nearer to each other
	// Has names what is here, as in gateway/1, or gateway for all of them. What
	// no zone has is in the first one.
	Has []string
}

// Link is the distance between two zones.
type Link struct {
	Between, And string
	Latency      time.Duration // one way
	Jitter       time.Duration // at most so much longer, evenly spread
}

func (z *Zone) fields() []field {
	return []field{
		{path: "name", kind: kindString, min: 1, max: 20, required: true, doc: "of the zone", to: &z.Name},
		{path: "region", kind: kindString, min: 1, max: 20, required: true, doc: "region of the world", to: &z.Region},
		{path: "has", kind: kindPlaces, enum: placed(), sparse: true, doc: "what is here, as in gateway/1, or gateway for all of them; what no zone has is in the first one", to: &z.Has},
	}
}

func (l *Link) fields() []field {
	return []field{
		{path: "between", kind: kindString, min: 1, max: 20, required: true, doc: "a zone", to: &l.Between},
		{path: "and", kind: kindString, min: 1, max: 20, required: true, doc: "another zone", to: &l.And},
		{path: "latency", kind: kindDuration, max: 0.5, required: true, doc: "one way", to: &l.Latency},
		{path: "jitter", kind: kindDuration, max: 0.5, def: "0s", doc: "at most so much longer, evenly spread; the order stays", to: &l.Jitter},
	}
}

// placed are the roles that a zone may have. The push provider is outside of the
// deployment, clients are next to their gateway, and the media service is next to
// its files.
func placed() []string {
	return []string{"gateway", "message", "fanout", "group", "inbox", "push", "kafka", "mysql", "redis"}
}

// parsePlace reads role/instance, or a role for all of its instances (-1).
func parsePlace(text string, roles []string) (role string, instance int, ok bool) {
	role, number, one := strings.Cut(text, "/")
	instance = -1
	if one {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= 64 {
			return "", 0, false
		}
		instance = n
	}
	return role, instance, slices.Contains(roles, role)
}

// ZoneOf names the zone of an instance, "" where the scenario has no zones.
// mysql/0 is the primary.
func (s *Spec) ZoneOf(role string, instance int) string {
	for _, z := range s.Zones {
		for _, place := range z.Has {
			if r, i, _ := parsePlace(place, placed()); r == role && (i == instance || i < 0) {
				return z.Name
			}
		}
	}
	if len(s.Zones) == 0 {
		return ""
	}
	return s.Zones[0].Name
}

// instances counts what there is of each role, in containers.
func (s *Spec) instances() map[string]int {
	t, i := s.Topology, s.Infrastructure
	return map[string]int{"gateway": t.Gateways, "message": t.Messages, "fanout": t.Fanouts, "group": t.Groups, "inbox": t.Inboxes, "push": t.Pushes, "media": s.Medias(),
		"kafka": i.Brokers, "mysql": 1 + i.Replicas, "redis": 1, "provider": 1}
}

// Placed lists what is in a zone, as role/instance.
func (s *Spec) Placed(zone string) []string {
	var out []string
	counts := s.instances()
	for _, role := range placed() {
		for i := range counts[role] {
			if s.ZoneOf(role, i) == zone {
				out = append(out, fmt.Sprintf("%s/%d", role, i))
			}
		}
	}
	return out
}

// consistentZones checks that everything is in one place and that the distance
// between any two places is known.
func (p *reader) consistentZones(s *Spec, at func(string) *token.Position) {
	if len(s.Zones) == 0 {
		if len(s.Links) > 0 {
			p.fail(at("links"), "links", "no zones", "links between zones, see zones", "")
		}
		return
	}
	if len(s.Zones) < 2 || len(s.Zones) > maxZones {
		p.fail(at("zones"), "zones", plural(len(s.Zones), "zone"), fmt.Sprintf("2 to %d of them", maxZones), "")
	}
	names := map[string]bool{}
	for i, z := range s.Zones {
		path := fmt.Sprintf("zones[%d].name", i)
		if names[z.Name] {
			p.fail(at(path), path, z.Name, "a name for each zone", "")
		}
		if strings.Trim(z.Name, zoneChars) != "" {
			p.fail(at(path), path, strconv.Quote(z.Name), "small letters, digits and hyphens", "")
		}
		names[z.Name] = true
	}
	p.consistentPlaces(s, at)
	p.consistentLinks(s, names, at)
}

// zoneChars may stand in the name of a zone, which becomes part of names of
// figures.
const zoneChars = "abcdefghijklmnopqrstuvwxyz0123456789-"

// maxZones bounds the zones: each pair has a link, and each endpoint a proxy for
// each other zone.
const maxZones = 8

func (p *reader) consistentPlaces(s *Spec, at func(string) *token.Position) {
	counts := s.instances()
	in := map[string]string{} // zone by role/instance
	for i, z := range s.Zones {
		for j, place := range z.Has {
			path := fmt.Sprintf("zones[%d].has[%d]", i, j)
			role, instance, _ := parsePlace(place, placed())
			if instance >= counts[role] {
				p.fail(at(path), path, place, fmt.Sprintf("an instance below %d, see topology and infrastructure", counts[role]), "")
				continue
			}
			for n := range counts[role] {
				if instance >= 0 && n != instance {
					continue
				}
				name := fmt.Sprintf("%s/%d", role, n)
				if other, ok := in[name]; ok {
					p.fail(at(path), path, place, "what is in no zone yet", name+" is in "+other)
					break
				}
				in[name] = z.Name
			}
			if role == "kafka" && instance >= 0 && counts["kafka"] > 1 {
				p.fail(at(path), path, place, "kafka, all brokers in one zone: what they say to each other cannot be delayed", "")
			}
		}
	}
}

func (p *reader) consistentLinks(s *Spec, names map[string]bool, at func(string) *token.Position) {
	linked := map[[2]string]bool{}
	for i, l := range s.Links {
		path := fmt.Sprintf("links[%d].", i)
		for _, end := range []struct{ field, zone string }{{"between", l.Between}, {"and", l.And}} {
			if !names[end.zone] {
				p.fail(at(path+end.field), path+end.field, end.zone, "a zone, see zones", "")
			}
		}
		a, b := min(l.Between, l.And), max(l.Between, l.And)
		if a == b || linked[[2]string{a, b}] {
			p.fail(at(path), strings.TrimSuffix(path, "."), l.Between+" and "+l.And, "two zones that have no link yet", "")
		}
		linked[[2]string{a, b}] = true
	}
	for i, z := range s.Zones {
		for _, other := range s.Zones[i+1:] {
			a, b := min(z.Name, other.Name), max(z.Name, other.Name)
			if a != b && !linked[[2]string{a, b}] {
				p.fail(at("links"), "links", "nothing between "+z.Name+" and "+other.Name, "a link for each pair of zones", "")
			}
		}
	}
}

// placesOf reads a sequence of places into a field.
func (p *reader) placesOf(n ast.Node, f *field, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		p.fail(n.GetToken().Position, path, given(n), f.allowed(), "")
		return
	}
	var out []string
	for i, v := range seq.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		p.places[at] = v.GetToken().Position
		text, ok := scalarText(v)
		if ok {
			_, _, ok = parsePlace(text, f.enum)
		}
		if !ok {
			p.fail(v.GetToken().Position, at, given(v), f.allowed(), didYouMean(text, f.enum))
			continue
		}
		out = append(out, text)
	}
	assign(f.to, out)
}

// describeZones prints where what is, and how far apart.
func (s *Spec) describeZones(w io.Writer) {
	if len(s.Zones) == 0 {
		return
	}
	fmt.Fprintf(w, "\nZones; clients are next to their gateway, the push provider is next to everybody\n")
	for _, z := range s.Zones {
		fmt.Fprintf(w, "  %s, region %s: %s\n", z.Name, z.Region, strings.Join(s.Placed(z.Name), ", "))
	}
	for _, l := range s.Links {
		fmt.Fprintf(w, "  between %s and %s: %s one way", l.Between, l.And, l.Latency)
		if l.Jitter > 0 {
			fmt.Fprintf(w, " and up to %s more", l.Jitter)
		}
		fmt.Fprintln(w)
	}
}
