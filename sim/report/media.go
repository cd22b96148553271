package report

import "throng/sim/history"

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
