package scenario

import "errors"

// Parse reads a scenario; name stands in errors as the file's name.
func Parse(name string, data []byte) (*Spec, error) { return nil, errors.New("not yet") }

// YAML is the resolved scenario with every field written out, in a fixed
// order; Parse of it gives an equal Spec.
func (s *Spec) YAML() []byte { return nil }
