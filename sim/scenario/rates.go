package scenario

import "math"

// Rates are what a scenario offers at the diurnal peak, after the scale-down
// law: population and rates scale with s; group sizes, message sizes, session
// behaviour and rates of one user do not.
type Rates struct {
	Users          int64   `json:"users"` // monthly active users of the slice: the population
	DAU            int64   `json:"dau"`   // daily active among them
	SendsPerS      float64 `json:"sends_per_s"`
	DeliveriesPerS float64 `json:"deliveries_per_s"` // to users; devices are counted beside it
	GroupSendsPerS float64 `json:"group_sends_per_s"`
	FanOut         float64 `json:"fan_out"`     // recipients for each send
	GroupShare     float64 `json:"group_share"` // share of sends that go to groups
	LoginsPerS     float64 `json:"logins_per_s"`
	PushesPerS     float64 `json:"pushes_per_s"` // planned: deliveries x assumed offline share
	Connections    float64 `json:"connections"`  // sockets open at a time
	MeanSessionS   float64 `json:"mean_session_s"`
	MeanGapS       float64 `json:"mean_gap_s"`   // between two messages of an active chat
	ActiveChats    int64   `json:"active_chats"` // sends_per_s x mean gap
	SpikeSendsPerS float64 `json:"spike_sends_per_s"`
	BacklogSends   float64 `json:"backlog_sends"` // about, in the whole backlog phase
	InFramesPerS   float64 `json:"in_frames_per_s"`
}

// Resolved applies the scale-down law, then the overrides.
func (s *Spec) Resolved() Rates {
	share, fanOut := presetFigures(s.Preset)
	r := Rates{
		Users:      int64(math.Round(monthlyUsers * s.Scale)),
		DAU:        int64(math.Round(dailyUsers * s.Scale)),
		SendsPerS:  messagesPerDay / 86400 * peakToMean * s.Scale,
		FanOut:     fanOut,
		GroupShare: share,
		MeanGapS:   meanGap(s.GapBranches()),
	}
	if s.Connection == Legacy {
		r.MeanSessionS = legacySessionS
		r.LoginsPerS = legacyConnected * monthlyUsers * s.Scale / legacySessionS
	} else {
		r.MeanSessionS = foregroundMin * 60 / opensPerDay
		r.LoginsPerS = opensPerDay * dailyUsers * s.Scale / 86400 * peakToMean
	}
	if o := s.Rates.Users; o > 0 {
		r.Users = o
		r.DAU = int64(math.Round(float64(o) * dailyUsers / monthlyUsers))
	}
	override(&r.SendsPerS, s.Rates.SendsPerS)
	override(&r.LoginsPerS, s.Rates.LoginsPerS)
	override(&r.MeanSessionS, s.Rates.MeanSessionS)
	r.Connections = r.LoginsPerS * r.MeanSessionS
	r.DeliveriesPerS = r.SendsPerS * r.FanOut
	r.GroupSendsPerS = r.SendsPerS * r.GroupShare
	r.PushesPerS = r.DeliveriesPerS * offlineAssumed
	r.ActiveChats = max(1, int64(math.Round(r.SendsPerS*r.MeanGapS)))
	r.SpikeSendsPerS = r.SendsPerS * (1 + (s.Phases.SpikeFactor-1)*s.SpikeShare())
	r.BacklogSends = r.LoginsPerS * (s.Phases.WarmupS + s.Phases.SteadyS + s.Phases.SpikeS) * s.BacklogRowsPerLogin
	r.InFramesPerS = r.SendsPerS*(1+TypingPerMessage+(1+ReadShare)*r.FanOut) + (PresencePerOpen+2)*r.LoginsPerS
	return r
}

// override replaces a rate where a value is given.
func override(rate *float64, value float64) {
	if value > 0 {
		*rate = value
	}
}

// meanGap is the mean of the law of times between messages, seconds. The mean
// of an exponential with rate r on (a,b] is a + 1/r - (b-a)/(e^(r(b-a)) - 1).
func meanGap(branches [4]GapBranch) float64 {
	mean := 0.0
	for _, b := range branches {
		mean += b.Weight * b.MeanS()
	}
	return mean
}

// MeanS is the mean of the branch, seconds.
func (b GapBranch) MeanS() float64 {
	w := b.MaxS - b.MinS
	return b.MinS + 1/b.Rate - w/math.Expm1(b.Rate*w)
}
