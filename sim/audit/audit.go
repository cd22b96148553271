// Package audit proves what a backend delivered: every message that a client
// wrote is followed to every device it is addressed to, and what is lost,
// duplicated, reordered, foreign or not proved is counted. The engine tells it
// what happened, as it happens and from many goroutines; verdicts about
// messages and memberships that were not known yet are given in Report. It has
// no network, no clock and no goroutines: the same events give the same report.
// It may import sim/history (the report's format) and system/wire, nothing
// else of this module.
package audit

import (
	"time"

	"throng/system/wire"
)

// Device is what everything is addressed to and proved for.
type Device struct {
	User   uint64
	Device uint32
}

// Message is what a client is about to write for the first time.
type Message struct {
	ID     wire.MessageID
	Group  uint64 // exactly one of Group and Peer is set
	Peer   uint64
	Sender Device
	Seq    uint64 // of the sender's device in this conversation, from 1
	// Intended is when the schedule wanted it sent, on the clock of Delivered's at.
	Intended time.Duration
	// Addressees are the devices it should reach, sorted by user and device,
	// without repeats. The slice is kept and must not change; messages of one
	// conversation should share it. Users of the group that Outside, Changing,
	// Removed or Added name are judged by those, whether they are in it or not.
	Addressees []Device
	SizeClass  int   // index into history.SizeClasses
	Phase      uint8 // chosen by the caller; see Config.Gated
	Stratum    int8  // declared extra stratum, -1 none
}

// Class is how a delivery reached a device.
type Class uint8

// The classes.
const (
	Live       Class = iota // the device had been current since before the intended time
	Drain                   // out of the inbox
	Transition              // neither: the device came, or went, around it
	Proof                   // while proving, after the load
)

// Config of an audit.
type Config struct {
	// Gated are the phases whose sends make the fan-out mean and the offline share.
	Gated []uint8
	// Devices returns how many devices (0, 1, ... n-1) a user has. It is asked for
	// users whose membership changed. Nil: only the devices seen in the
	// addressees of a group's messages are known.
	Devices func(user uint64) int
	// Sampled is the declared share of addressees to be proved; 0 means all.
	Sampled float64
}

// Delivery is what the audit knows about a delivery.
type Delivery struct {
	Known     bool // false: nobody wrote this message
	Duplicate bool // this device's application already had it
	Group     bool
	Phase     uint8
	Stratum   int8
	SizeClass int
	Intended  time.Duration
	Latency   time.Duration // since Intended
	Online    bool          // the device was marked online for it

	// First: this is the first live delivery to a device that was online.
	// FirstLatency is its latency.
	First        bool
	FirstLatency time.Duration
	// Last: with this delivery no device that was marked online is open any more:
	// each has got it live, or has got it otherwise and so was no longer online.
	// LastLatency is the latency of the last live one; it may be of an earlier call.
	// Last is not set when none was live.
	Last        bool
	LastLatency time.Duration
	LiveOnline  int // devices marked online that got it live so far
}
