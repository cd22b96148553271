package scenario

import (
	"fmt"
	"strconv"
)

// Whatsapp2025 is the only profile: the published workload figures of a
// service that carries 100 billion messages a day.
const Whatsapp2025 = "whatsapp_2025"

// The figures of the profile that the arithmetic uses; Params lists every
// one with its source and confidence.
const (
	messagesPerDay  = 100e9
	monthlyUsers    = 3.0e9
	dailyUsers      = 2.2e9
	peakToMean      = 1.55
	opensPerDay     = 23.0
	foregroundMin   = 35.15 // minutes a day
	legacyConnected = 0.316 // of monthly users, at the peak
	legacySessionS  = 639.0
	offlineAssumed  = 0.5

	// TypingPerMessage is frames, PresencePerOpen too, ReadShare is reads for
	// each received message.
	TypingPerMessage = 1.5
	PresencePerOpen  = 2.0
	ReadShare        = 0.8
	// SessionSigma is of the logarithm of a session's length.
	SessionSigma = 1.0
	// Text lengths are lognormal in characters, with a share of empty ones.
	TextMu, TextSigma, TextEmpty = 2.975, 1.049, 0.052
	// TextExpansion is bytes on the wire for each character.
	TextExpansion = 1.33
	// MaxTextChars caps a text.
	MaxTextChars = 65536
)

// Shares of all messages that are not content of their own. Calls: 1.4 B on
// New Year's Eve 2020, half as many again as usual, so 0.93 B a day beside 100 B
// messages. Nothing is published about the others: small, and to be swept.
const (
	CallShare     = 0.0093 // offers
	AnswerShare   = 0.7    // of the offers; the others are declined
	ReactionShare = 0.03
	EditShare     = 0.01
	DeleteShare   = 0.01
)

// OfferBytes and AnswerBytes are mean body bytes of call signalling: a session
// description with its candidates. A hang-up, a reaction and a deletion have
// next to no body, an edit has a text's.
const (
	OfferBytes  = 2000
	AnswerBytes = 1500
)

// KindShares are the shares of what has content of its own by kind: text,
// image, voice, video, other, in the order of the protocol's kinds.
func KindShares() [5]float64 { return [5]float64{0.81, 0.09, 0.07, 0.02, 0.01} }

// PointerBytes are mean body bytes of a message of each kind but text: the
// pointer to a stored object, its key and thumbnail (WORKLOAD.md section 2a,
// overhead on the wire less the 740 bytes that a text has too).
func PointerBytes() [5]int { return [5]int{0, 1100, 2290, 5820, 1800} }

// GapBranch is one branch of the law of times between two messages of an
// active chat: an exponential with rate Rate, conditioned on (MinS, MaxS].
type GapBranch struct {
	Name   string
	Weight float64
	Rate   float64 // 1/s
	MinS   float64
	MaxS   float64
}

// GapBranches is the 4-branch law, after the overrides of burst share and tempo.
func (s *Spec) GapBranches() [4]GapBranch {
	const day = 86400.0
	b := [4]GapBranch{
		{"conversation burst", 0.7473, 0.0480334, 0, 100},
		{"same hour", 0.2019, 0.00126091, 100, 3600},
		{"same day", 0.0465, 4.7584e-5, 3600, day},
		{"dormant", 0.0043, 0.6303 / day, day, 60 * day}, // no bound is published; 60 days cuts e^-37
	}
	if share := s.Rates.BurstShare; share > 0 {
		rest := 1 - b[0].Weight
		b[0].Weight = share
		for i := 1; i < len(b); i++ {
			b[i].Weight *= (1 - share) / rest
		}
	}
	if tempo := s.Rates.ChatTempo; tempo > 0 {
		for i := range b {
			b[i].Rate *= tempo
			b[i].MinS /= tempo
			b[i].MaxS /= tempo
		}
	}
	return b
}

// presetFigures are a preset's share of messages that go to groups, and its
// fan-out (WORKLOAD.md section 5). sim/population computes the fan-out from
// the size law: 2.080, 2.733, 11.16.
func presetFigures(preset string) (groupShare, fanOut float64) {
	switch preset {
	case PresetA:
		return 0.43, 2.08
	case PresetC:
		return 0.60, 11.2
	case PresetDirect:
		return 0, 1
	}
	return 0.43, 2.73
}

// Param is one figure of the profile.
type Param struct {
	Name       string `json:"name"`
	Value      string `json:"value"`
	Unit       string `json:"unit"`
	Source     string `json:"source"`
	Confidence string `json:"confidence"` // see ConfidenceTags
	Note       string `json:"note,omitempty"`
}

// ConfidenceTags says what the confidence tags mean.
func ConfidenceTags() string {
	return "P read in the primary text, S read in a faithful secondary copy, D derived by arithmetic from P or S, A assumption without a measurement"
}

// Params lists every parameter of the workload for this spec's preset and
// connection model, with source and confidence. Overrides are not in it.
func (s *Spec) Params() []Param {
	out := append(scaleParams(s.Preset), s.chatParams()...)
	out = append(out, messageParams()...)
	return append(out, sessionParams(s.Connection)...)
}

func num(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

func scaleParams(preset string) []Param {
	share, fanOut := presetFigures(preset)
	sizes := map[string]string{
		PresetA:      "P(N>n) = exp(-0.508 (n-2)), N >= 3, mean 4.5",
		PresetB:      "97.05 % P(N>n) = exp(-0.508 (n-2)), 2.95 % lognormal(2.17, 1.12) on 27..1024",
		PresetC:      "recipients lognormal(2.17, 1.12) on 2..1023",
		PresetDirect: "no groups",
	}[preset]
	return []Param{
		{"messages sent", num(messagesPerDay), "1/day", "Zuckerberg, Q3 2020 earnings call (techcrunch 2020-10-29)", "S", "said of deliveries; read as sends, the conservative way (else about 48 B sends)"},
		{"monthly active users", num(monthlyUsers), "users", "secondary notes citing Meta 2025", "S", "the population"},
		{"daily active users", num(dailyUsers), "users", "DAU/MAU of 2014 (0.70) and 2017 (0.77)", "D", ""},
		{"diurnal peak over mean", num(peakToMean), "", "Reed 2014: 342 k over 220 k messages/s", "D", "sum over the world"},
		{"spike over peak", "5", "", "LINE engineering 2020, New Year's Eve", "S", "one region; match 1.35, record 21.6 of the mean"},
		{"share of messages to groups", num(share), "", "set so that fan-out of preset A meets Reed 2014 (40 B out, 19 B in)", "D", "preset " + preset},
		{"group size", sizes, "members", "mim-stm (TNSM 2025), fit and proximity data", "P/D", "by messages; the least certain input"},
		{"fan-out", num(fanOut), "recipients/send", "computed from the two above", "D", ""},
		{"sends of one user, skew", "lognormal sigma 1.2", "", "sweep 0.9 to 1.5", "A", "mean 45 a day for each daily user (D)"},
		{"contacts", "exponential mean 489.6", "users", "mim-stm", "P", ""},
		{"devices", "1.2", "per user", "sweep 1 to 2", "A", "phone and up to 3 linked"},
	}
}

func (s *Spec) chatParams() []Param {
	var out []Param
	base := (&Spec{}).GapBranches()
	for _, b := range base {
		out = append(out, Param{"time in chat: " + b.Name, fmt.Sprintf("weight %s, rate %s on %s..%s", num(b.Weight), num(b.Rate), num(b.MinS), num(b.MaxS)), "1/s, s", "mim-stm", "P", ""})
	}
	return append(out,
		Param{"time in chat: mean", num(meanGap(base)), "s", "from the four branches", "D", "squared coefficient of variation about 67"},
		Param{"who writes, group of 2, 3, 5, 10, 11-30, >30", "ranks 1..3: .55/.45; .499/.313/.188; .366/.263/.192; .273/.197/.149; .226/.151/.115; .131/.081/.064", "share", "mim-stm", "P", "Zipf 0.6 beyond rank 3 (D), sizes between are interpolated (A)"},
	)
}

func messageParams() []Param {
	return []Param{
		{"kinds text, image, voice, video, other", ".81 .09 .07 .02 .01", "share of content", "New Year's Eve 2019 (12 % photo), 2017 (8.2 % photo, 1.8 % video), voice 7 % of 2022", "D", ""},
		{"call offers", num(CallShare), "share of all messages", "1.4 B calls on New Year's Eve 2020, +50 % (phonearena 2020-01-03 and others), over 100 B", "D", "direct chats only; signalling counts as messages, sweep 0 to 0.05"},
		{"calls answered", num(AnswerShare), "share", "no source found", "A", "the others are declined; each call ends with a hang-up"},
		{"reactions, edits, deletions", num(ReactionShare) + " " + num(EditShare) + " " + num(DeleteShare), "share of all messages", "no source found", "A", "sweep 0 to 0.15, 0.05, 0.05; they name the message they are about"},
		{"body of call offer, answer", num(OfferBytes) + " " + num(AnswerBytes), "bytes", "size of a session description", "A", "+-30 %"},
		{"text length", "lognormal(2.975, 1.049), 5.2 % empty, at most 65,536", "characters", "mim-stm", "P/D", ""},
		{"body of a text", num(TextExpansion), "bytes/character", "mim-stm", "P", "the 740 bytes of envelope are the protocol's own here"},
		{"body of a media message", "1,100 / 2,290 / 5,820 / 1,800 mean, +-30 %", "bytes", "mim-stm, overhead on the wire by type less text's", "D", "image, voice, video, other (A)"},
		{"object of a media message", "213 kB / 89 kB / 6.29 MB / 500 kB mean, exponential", "bytes", "mim-stm, after compression; other (A)", "P/A", "image, voice, video, other; transferred where media.share is not 0, times media.byte_scale"},
		{"typing frames", num(TypingPerMessage), "per message", "no primary source found", "A", ""},
		{"presence frames", num(PresencePerOpen), "per open", "no primary source found", "A", "to viewers only"},
		{"read", num(ReadShare), "per received message", "receipts can be switched off; share assumed", "A", ""},
		{"read delay", "half within 60 s; 5 s median with the chat on the screen", "s", "Reed 2014 (50 % within 60 s); Pielot 2014 (median 7.8 min) measures notification to view", "S/A", ""},
	}
}

func sessionParams(connection string) []Param {
	if connection == Legacy {
		return []Param{
			{"connected at the peak", num(legacyConnected), "of monthly users", "Reed 2014: 147 M of 465 M", "D", ""},
			{"socket lifetime", num(legacySessionS), "s", "Reed 2014 by Little's law", "D", "idle time-outs 180 to 1,440 s (Fiadino 2015)"},
			{"offline recipients, planned", num(offlineAssumed), "share", "sweep 0.3 to 0.7", "A", "the run measures it"},
		}
	}
	return []Param{
		{"app opens", num(opensPerDay), "1/day per daily user", "onlinestatusmonitor (FAU, 2013-14)", "P", "of every cause"},
		{"time in foreground", num(foregroundMin), "min/day", "onlinestatusmonitor (FAU, 2013-14)", "P", ""},
		{"session length", "mean " + num(foregroundMin*60/opensPerDay) + ", lognormal sigma 1.0", "s", "the two above; sigma assumed", "P/A", "sessions with sends last at least as long as those"},
		{"offline recipients, planned", num(offlineAssumed), "share", "sweep 0.3 to 0.7", "A", "the run measures it"},
	}
}
