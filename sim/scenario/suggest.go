package scenario

import (
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// scalarText is the text of a scalar value; false for anything else.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// given is what stood in the file, for a person.
func given(n ast.Node) string {
	if _, ok := n.(*ast.NullNode); ok {
		return "nothing"
	}
	if text, ok := scalarText(n); ok {
		return strconv.Quote(short(text))
	}
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return strconv.Quote(short(n.String()))
}

// short cuts text to what fits on a line.
func short(text string) string {
	if r := []rune(text); len(r) > 40 {
		return string(r[:37]) + "..."
	}
	return text
}

func find(fields []field, path string) *field {
	for i := range fields {
		if fields[i].path == path {
			return &fields[i]
		}
	}
	return nil
}

func hasSection(fields []field, path string) bool {
	return slices.ContainsFunc(fields, func(f field) bool { return strings.HasPrefix(f.path, path+".") })
}

// names are the fields and sections directly below prefix, in their order,
// and the lists.
func names(fields []field, prefix string, lists map[string]func(string, *ast.MappingNode)) []string {
	var out []string
	for _, f := range fields {
		rest, ok := strings.CutPrefix(f.path, prefix)
		name, _, _ := strings.Cut(rest, ".")
		if ok && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	var more []string
	for name := range lists {
		more = append(more, name)
	}
	sort.Strings(more)
	return append(out, more...)
}

// didYouMean names the nearest allowed word, if one is near.
func didYouMean(word string, allowed []string) string {
	best, distance := "", 1+max(1, len(word)/3)
	for _, a := range allowed {
		if len(word) >= 3 && strings.HasPrefix(strings.ToLower(a), strings.ToLower(word)) {
			return "did you mean " + a + "?"
		}
		if d := editDistance(strings.ToLower(word), strings.ToLower(a)); d < distance {
			best, distance = a, d
		}
	}
	if best == "" {
		return ""
	}
	return "did you mean " + best + "?"
}

// editDistance counts insertions, deletions, replacements and swaps of
// neighbours.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
