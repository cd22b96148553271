package load

import (
	"testing"
	"time"

	"throng/sim/history"
	"throng/sim/scenario"
	"throng/system/wire"
)

// TestPushAudit: a message that lay in an inbox for long needs a push that was
// accepted later than the message, or a reason of the provider's why not.
func TestPushAudit(t *testing.T) {
	const accepted, now = 100 * time.Second, 200 * time.Second
	type answer struct {
		outcome PushOutcome
		at      time.Duration
	}
	for _, c := range []struct {
		name    string
		answers []answer
		now     time.Duration
		want    history.PushAudit
	}{
		{"none", nil, now, history.PushAudit{Checked: 1, Missing: 1}},
		{"too young to say", nil, accepted + 10*time.Second + pushGrace, history.PushAudit{}},
		{"accepted", []answer{{PushAccepted, 105 * time.Second}}, now, history.PushAudit{Checked: 1}},
		{"accepted before the message", []answer{{PushAccepted, 99 * time.Second}}, now, history.PushAudit{Checked: 1, Missing: 1}},
		{"gone", []answer{{PushDead, 50 * time.Second}}, now, history.PushAudit{Checked: 1, Dead: 1}},
		{"gone, and asked again", []answer{{PushDead, 50 * time.Second}, {PushDead, 120 * time.Second}}, now, history.PushAudit{Checked: 1, Dead: 1, DeadAgain: 1}},
		{"failed", []answer{{PushFailed, 104 * time.Second}}, now, history.PushAudit{Checked: 1, Failed: 1}},
		{"failed, then accepted", []answer{{PushFailed, 104 * time.Second}, {PushAccepted, 105 * time.Second}}, now, history.PushAudit{Checked: 1}},
		{"failed before the message", []answer{{PushFailed, 90 * time.Second}}, now, history.PushAudit{Checked: 1, Missing: 1}},
		{"made to wait", []answer{{PushThrottled, 150 * time.Second}}, now, history.PushAudit{Checked: 1, Throttled: 1}},
		{"made to wait before", []answer{{PushThrottled, 90 * time.Second}}, now, history.PushAudit{Checked: 1, Missing: 1}},
	} {
		e := &Engine{start: time.Now(), offers: Offers{Pushes: true}, spec: &scenario.Spec{PushDelayS: 3, PushEveryS: 10}}
		d := &device{pushed: pushed{last: -1, failed: -1}}
		for _, a := range c.answers {
			d.pushed.answered(&e.pushes, a.outcome, a.at)
		}
		e.checkPush(d, &wire.Deliver{From: 2, AcceptedMs: e.start.Add(accepted).UnixMilli() + 1}, c.now)
		if got := e.PushAudit(); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
