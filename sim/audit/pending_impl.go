package audit

import (
	"time"

	"throng/sim/history"
	"throng/system/wire"
)

// Audit follows messages to devices.
type Audit struct{}

// Handle names a written message without a look-up.
type Handle struct{}

// Fanout is how a group message reached the devices that were online for it.
type Fanout struct {
	SizeClass   int
	Phase       uint8
	Stratum     int8
	Intended    time.Duration
	Marked      int // devices marked online
	Live        int // of these, that got it live
	First, Last time.Duration
}

func New(cfg Config) *Audit                               { return &Audit{} }
func (a *Audit) Written(m Message) Handle                 { return Handle{} }
func (h Handle) OnlineAt(i int)                           {} // i: index into Addressees
func (h Handle) Acknowledged()                            {}
func (h Handle) Refused()                                 {}
func (a *Audit) Acknowledged(id wire.MessageID)           {}
func (a *Audit) Refused(id wire.MessageID)                {}
func (a *Audit) Online(id wire.MessageID, dev Device)     {}
func (a *Audit) Redelivered(dev Device)                   {}
func (a *Audit) Changing(group, user uint64)              {} // a membership change is about to be asked for
func (a *Audit) Removed(group, user uint64, offset int64) {}
func (a *Audit) Added(group, user uint64, offset int64)   {}
func (a *Audit) Pending() []Device                        { return nil }
func (a *Audit) Drained(dev Device)                       {} // after the load: the device got Current, what it misses is lost
func (a *Audit) Unprovable(dev Device)                    {} // it could not be connected or drained
func (a *Audit) Fanouts(f func(Fanout))                   {} // every group message with an online device, at the end
func (a *Audit) Report() history.Audit                    { return history.Audit{} }
func (a *Audit) Delivered(dev Device, d *wire.Deliver, class Class, at time.Duration) Delivery {
	return Delivery{}
}
