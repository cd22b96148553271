package report

import (
	"encoding/xml"
	"fmt"
)

type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	Stamp    string      `xml:"timestamp,attr"`
	Props    []junitProp `xml:"properties>property"`
	Cases    []junitCase `xml:"testcase"`
}

type junitProp struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Error   *junitMessage `xml:"error,omitempty"`
	Skipped *junitMessage `xml:"skipped,omitempty"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
}

// junit is one test case a gate and audit row, and one a phase. An inconclusive
// gate is an error: a CI system must not count missing evidence as success.
func (r *Result) junit() ([]byte, error) {
	s := junitSuite{Name: "throng." + r.Scenario, Stamp: r.Start, Time: "0", Props: []junitProp{{"verdict", string(r.Verdict)}, {"target", r.Target}, {"run", r.RunID},
		{"seed", fmt.Sprint(r.Seed)}, {"replay", r.Replay}}}
	if r.DurationS.Known() {
		s.Time = fmt.Sprintf("%.3f", float64(r.DurationS))
	}
	for _, g := range r.Gates {
		c := junitCase{Class: "throng." + r.Scenario + "." + g.Kind, Name: g.Name, Out: g.Text}
		switch g.Verdict {
		case Fail:
			c.Failure = &junitMessage{g.Text}
			s.Failures++
		case Pass:
		default:
			c.Error = &junitMessage{"inconclusive: " + g.Text}
			s.Errors++
		}
		s.Cases = append(s.Cases, c)
	}
	for _, p := range r.Phases {
		c := junitCase{Class: "throng." + r.Scenario + ".phase", Name: p.Name, Out: string(p.Verdict) + ": " + p.Line}
		if p.Verdict == Missing {
			c.Skipped = &junitMessage{p.Line}
			s.Skipped++
		}
		s.Cases = append(s.Cases, c)
	}
	s.Tests = len(s.Cases)
	b, err := xml.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileJUnit, err)
	}
	return append([]byte(xml.Header), append(b, '\n')...), nil
}
