package workload

import (
	"testing"

	"throng/sim/scenario"
)

// kinds: calls, reactions, edits and deletions have their shares, and each
// names an earlier message of the same conversation that it can be about.
func (x suite) kinds(t *testing.T) {
	var n [11]float64
	mean := 0.0
	ended := map[int32]bool{}
	deleted := map[int32]bool{}
	for _, i := range x.s.Sends {
		a := &x.s.Actions[i]
		if a.Backlog || a.Stratum >= 0 {
			if a.MsgKind >= kindOffer {
				t.Fatalf("kind %d outside the mix", a.MsgKind)
			}
			continue
		}
		mean++
		n[a.MsgKind]++
		if (a.MsgKind < kindAnswer) != (a.About < 0) {
			t.Fatalf("kind %d is about %d", a.MsgKind, a.About)
		}
		if a.About < 0 {
			continue
		}
		about := &x.s.Actions[x.s.Sends[a.About]]
		same := about.Conv == a.Conv || a.Conv.Group == 0 && about.Conv == Conv{Peer: a.User} && about.User == a.Conv.Peer
		if !same || about.At > a.At || about.Kind != Send {
			t.Fatalf("%+v names %+v", a, about)
		}
		own := about.User == a.User && about.Device == a.Device
		switch a.MsgKind {
		case kindAnswer, kindHangUp:
			if about.MsgKind != kindOffer || a.Conv.Group != 0 || ended[a.About] || a.MsgKind == kindAnswer && own {
				t.Fatalf("%+v in the call of %+v", a, about)
			}
			ended[a.About] = a.MsgKind == kindHangUp
		case kindReaction:
			if own || about.MsgKind > kindOffer || a.ReplyTo != a.About {
				t.Fatalf("%+v reacts to %+v", a, about)
			}
		case kindEdit, kindDelete:
			if !own || about.MsgKind > kindOffer-1 || deleted[a.About] {
				t.Fatalf("%+v changes %+v", a, about)
			}
			deleted[a.About] = a.MsgKind == kindDelete
		}
	}
	for kind, want := range map[int]float64{kindOffer: scenario.CallShare, kindReaction: scenario.ReactionShare,
		kindEdit: scenario.EditShare, kindDelete: scenario.DeleteShare} {
		t.Logf("kind %d: %.4f of %.0f", kind, n[kind]/mean, mean)
		within(t, "share of kind", n[kind]/mean, want, 0.2)
	}
	if n[kindAnswer] < n[kindOffer]/4 || n[kindAnswer] > n[kindOffer] || n[kindHangUp] > n[kindOffer] || n[kindHangUp] < 0.8*n[kindOffer] {
		t.Errorf("%v offers, %v answers, %v ends", n[kindOffer], n[kindAnswer], n[kindHangUp])
	}
}
