package scenario

// Rates are what a scenario offers at the diurnal peak, after the scale-down
// law: population and rates scale with s; group sizes, message sizes, session
// behaviour and rates of one user do not.
type Rates struct {
	Users          int64 // monthly active users of the slice: the population
	DAU            int64 // daily active among them
	SendsPerS      float64
	DeliveriesPerS float64 // to users; devices are counted beside it
	GroupSendsPerS float64
	FanOut         float64 // recipients for each send
	GroupShare     float64 // share of sends that go to groups
	LoginsPerS     float64 // opens of every cause
	PushesPerS     float64 // planned: deliveries x assumed offline share
	Connections    float64 // sockets open at a time
	MeanSessionS   float64
	MeanGapS       float64 // between two messages of an active chat
	ActiveChats    int64   // sends_per_s x mean gap
	SpikeSendsPerS float64 // in the spike
	BacklogSends   float64 // in the whole backlog phase
	InFramesPerS   float64 // send + typing + acknowledgements + reads + presence
}
