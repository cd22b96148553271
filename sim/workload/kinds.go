package workload

import (
	"math"

	"throng/sim/population"
	"throng/sim/scenario"
)

// Kinds of the protocol beyond content, as numbers: this package knows nothing
// of the protocol.
const (
	kindText     = 0
	kindOffer    = 5
	kindAnswer   = 6
	kindHangUp   = 7
	kindReaction = 8
	kindEdit     = 9
	kindDelete   = 10
)

// naming is what a send is instead of content: its kind, and the send that it
// is about, -1 none. The zero value is content.
type naming struct{ kind, about int32 }

// callWithin is how soon the other side must write for a call to begin: that
// message answers or declines it.
const callWithin = 100 * second

// named decides which sends are calls, reactions, edits and deletions. Each
// takes the place of a message that is sent anyway, so that rates, fan-out and
// sessions stay as they are. Where it can stand is known first, then each place
// is drawn with the probability that gives the share of all messages. Backlog
// and strata stay content.
func (b *builder) named() []naming {
	out := make([]naming, len(b.sends))
	chats := make([][]int32, len(b.chats))
	for i := range b.sends {
		if c := b.sends[i].chat; c >= 0 && b.chats[c].stratum < 0 {
			chats[c] = append(chats[c], int32(i))
		}
	}
	var places struct{ all, call, reaction, own int }
	for _, sends := range chats {
		places.all += len(sends)
		session := map[uint64]int32{} // of a sender's message before
		for n, i := range sends {
			x := &b.sends[i]
			if b.callable(sends, n) {
				places.call++
			}
			if b.replyTo(x.event) >= 0 {
				places.reaction++
			}
			if before, ok := session[x.user]; ok && before == x.session {
				places.own++
			}
			session[x.user] = x.session
		}
	}
	share := func(of float64, at int) float64 { return of * float64(places.all) / float64(max(1, at)) }
	law := kindLaw{call: share(scenario.CallShare, places.call), reaction: share(scenario.ReactionShare, places.reaction),
		edit: share(scenario.EditShare, places.own), remove: share(scenario.DeleteShare, places.own)}
	for _, sends := range chats {
		b.nameChat(sends, law, out)
	}
	return out
}

// kindLaw holds the probabilities at a place where the kind can stand.
type kindLaw struct{ call, reaction, edit, remove float64 }

// callable says whether the n-th of a chat's sends can be the offer of a call.
func (b *builder) callable(sends []int32, n int) bool {
	x := &b.sends[sends[n]]
	if b.chats[x.chat].group != 0 || n+1 >= len(sends) {
		return false
	}
	next := &b.sends[sends[n+1]]
	return next.user != x.user && next.at-x.at <= callWithin
}

// nameChat goes through one chat in order.
func (b *builder) nameChat(sends []int32, law kindLaw, out []naming) {
	call := int32(-1) // the offer of the call that is going on
	answered := false
	mine := map[uint64]int32{} // newest message of a sender that can be changed
	for n, i := range sends {
		x := &b.sends[i]
		s := population.NewStream(b.spec.Seed, purposeKind, uint64(i), 0)
		u := s.Float64()
		if call >= 0 {
			out[i] = naming{kindHangUp, call}
			if !answered && x.user != b.sends[call].user && u < scenario.AnswerShare {
				out[i].kind, answered = kindAnswer, true
				continue
			}
			call = -1
			continue
		}
		if b.callable(sends, n) {
			if u < law.call {
				out[i], call, answered = naming{kindOffer, -1}, i, false
				continue
			}
			u = (u - law.call) / (1 - law.call)
		}
		if to := b.replyTo(x.event); to >= 0 {
			if u < law.reaction && out[to].kind < kindAnswer {
				out[i] = naming{kindReaction, to}
				continue
			}
			u = (u - law.reaction) / (1 - law.reaction)
		}
		if last, ok := mine[x.user]; ok && b.sends[last].session == x.session {
			switch {
			case u < law.edit:
				out[i] = naming{kindEdit, last}
				continue
			case u < law.edit+law.remove:
				out[i] = naming{kindDelete, last}
				delete(mine, x.user)
				continue
			}
		}
		mine[x.user] = i
	}
}

// kind returns what the send with an index is, its length, and what it is about.
func (b *builder) kind(index int32, named naming) (kind int32, length int, about int32) {
	if named.kind == 0 {
		kind, length = b.body(index)
		return kind, length, -1
	}
	s := population.NewStream(b.spec.Seed, purposeBody, uint64(index), 0)
	around := func(mean float64) int { return int(mean * (0.7 + float64(0.6*s.Float64()))) }
	switch named.kind {
	case kindOffer:
		length = around(scenario.OfferBytes)
	case kindAnswer:
		length = around(scenario.AnswerBytes)
	case kindEdit:
		length = textLength(&s)
	default:
		length = MinBody
	}
	return named.kind, length, named.about
}

// textLength draws the body length of a text.
func textLength(s *population.Stream) int {
	if s.Float64() < scenario.TextEmpty {
		return MinBody
	}
	chars := min(scenario.MaxTextChars, math.Round(s.LogNormal(scenario.TextMu, scenario.TextSigma)))
	return max(MinBody, min(maxBody, int(chars*scenario.TextExpansion)))
}
