package scenario

import "io"

// Resolved applies the scale-down law and the overrides.
func (s *Spec) Resolved() Rates { return Rates{} }

// Describe prints resolved rates and the arithmetic up to 100 B messages a day.
func (s *Spec) Describe(w io.Writer) {}
