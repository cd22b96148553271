package report

import (
	"fmt"
	"math"
	"strings"

	"throng/sim/history"
)

// mediaGates judges the objects of messages: what was fetched is what was sent.
func (j *judgement) mediaGates(f facts) {
	if !f.media || f.audit == nil {
		return
	}
	a := f.audit.Media
	j.gate(Gate{Name: "media present", Kind: "audit", Phase: "run", Value: Number(a.Pairs), Limit: 1, Unit: "pairs"}, Inconclusive, a.Pairs > 0,
		"%s pairs of an object and a user who fetches it, %s objects uploaded, %s interruptions made good", count(a.Pairs), count(a.Uploads), count(a.Resumed))
	for _, x := range []struct {
		name string
		n    int64
		what string
	}{
		{"media corrupt", a.Corrupt, "objects fetched are not what was sent"},
		{"media missing", a.Missing, "objects of delivered messages could not be fetched"},
		{"media not uploaded", a.UploadsFailed, "objects could not be uploaded within a minute"},
	} {
		j.gate(Gate{Name: x.name, Kind: "audit", Phase: "run", Value: Number(x.n), Limit: 0, Unit: "pairs", Count: a.Pairs}, Fail, x.n == 0, "%s %s", count(x.n), x.what)
	}
}

// mediaRows are those of the audit's table; none where the run had no media.
func mediaRows(a *history.MediaAudit) []auditRow {
	if a == nil {
		return nil
	}
	return []auditRow{{"media: objects uploaded", a.Uploads, false}, {"media: interrupted uploads that went on", a.Resumed, false},
		{"media: pairs of object and user", a.Pairs, false}, {"media: proved by hash", a.Proved, false},
		{"media: corrupt", a.Corrupt, true}, {"media: missing", a.Missing, true}, {"media: not uploaded", a.UploadsFailed, true},
		{"media: bytes up", a.BytesUp, false}, {"media: bytes down", a.BytesDown, false}}
}

// mediaClassNames are the latencies of uploads and fetches by size of the object.
func mediaClassNames() []kindName {
	var out []kindName
	for _, k := range []kindName{{kind: history.KindMediaUploadOf, name: "media: until uploaded, "}, {kind: history.KindMediaFetchOf, name: "media: delivered to fetched, "}} {
		for _, c := range history.MediaClasses {
			out = append(out, kindName{kind: k.kind + c.Name, name: k.name + c.Name})
		}
	}
	return out
}

// mediaLine is the audit of media in a line, with the p99 of each class of size;
// "" where the run had none.
func (r *Result) mediaLine() string {
	if r.Audit == nil || r.Audit.Media == nil {
		return ""
	}
	m := r.Audit.Media
	s := fmt.Sprintf("Media: %s uploads (%s, %s interrupted), %s of %s downloads proved (%s); %s uploads failed, %s downloads missing, %s corrupt.",
		count(m.Uploads), bytesOf(m.BytesUp), count(m.Resumed), count(m.Proved), count(m.Pairs), bytesOf(m.BytesDown), count(m.UploadsFailed), count(m.Missing), count(m.Corrupt))
	for _, k := range []struct{ name, kind string }{{"uploads", history.KindMediaUploadOf}, {"downloads", history.KindMediaFetchOf}} {
		var parts []string
		for _, c := range history.MediaClasses {
			if l := r.LatencyMs[k.kind+c.Name]; l.Count > 0 {
				parts = append(parts, fmt.Sprintf("%s %s of %s", c.Name, ms(l.P99), count(l.Count)))
			}
		}
		if len(parts) > 0 {
			s += fmt.Sprintf(" p99 of %s: %s.", k.name, strings.Join(parts, ", "))
		}
	}
	return s
}

// mediaAudits compares the audits of media, where one of the runs has any.
func (p *pair) mediaAudits() []CompareRow {
	of := func(c *compared) *history.MediaAudit {
		if c.result.Audit == nil {
			return nil
		}
		return c.result.Audit.Media
	}
	a, b := of(p.a), of(p.b)
	if a == nil && b == nil {
		return nil
	}
	var rows []CompareRow
	x, y := mediaRows(a), mediaRows(b)
	for i := range max(len(x), len(y)) {
		figure := func(rows []auditRow) (string, float64) {
			if rows == nil {
				return "", math.NaN()
			}
			return rows[i].name, float64(rows[i].n)
		}
		nameA, valueA := figure(x)
		nameB, valueB := figure(y)
		rows = append(rows, single(firstOf(nameA, nameB), "", valueA, valueB))
	}
	return rows
}
