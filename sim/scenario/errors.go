package scenario

import (
	"fmt"
	"strings"
)

// FieldError is one mistake in a scenario file.
type FieldError struct {
	File    string
	Line    int // from 1; 0 when the mistake has no place (a missing field)
	Col     int
	Field   string // path, as in phases.steady
	Given   string // what stood there, shortened
	Allowed string // what may stand there
	Hint    string // did you mean ...
}

// Error is one line: file:line:col: field: given X, allowed: Y (hint).
func (e *FieldError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", e.File, e.Line, e.Col)
	if e.Field != "" {
		fmt.Fprintf(&b, "%s: ", e.Field)
	}
	fmt.Fprintf(&b, "given %s, allowed: %s", e.Given, e.Allowed)
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

// Errors is everything wrong with a scenario file, in the order of the file.
type Errors []*FieldError

// Error is all of them, one a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, fe := range e {
		lines[i] = fe.Error()
	}
	return strings.Join(lines, "\n")
}
