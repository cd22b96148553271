// Package audit proves what a backend delivered: every message that a client
// wrote is followed to every device it is addressed to, and what is lost,
// duplicated, reordered, foreign or not proved is counted.
//
// Engines tell it what happened, as it happens and from many goroutines. Each
// writes a Spool of its own, cut into partitions by conversation; Replay judges
// the spools of all engines afterwards, one partition after the other, so that
// memory depends on the size of a partition and not on the number of messages,
// and so that sender and receiver may be with different engines. Nothing depends
// on the order in which engines did something, but on what travels with the
// messages: sequence numbers and positions in a group's log. Where only time can
// tell (a message whose position nobody told, and a change of its group), the
// engines' clocks do, and what is closer than their error is undecided.
//
// It has no network, no clock and no goroutines: the same spools give the same
// report. It may import sim/history (the report's format) and system/wire,
// nothing else of this module.
package audit

import (
	"cmp"
	"fmt"
	"time"

	"throng/system/wire"
)

// Device is what everything is addressed to and proved for.
type Device struct {
	User   uint64
	Device uint32
}

// String writes a device as user/device.
func (d Device) String() string { return fmt.Sprintf("%d/%d", d.User, d.Device) }

func (d Device) less(e Device) bool {
	return d.User < e.User || d.User == e.User && d.Device < e.Device
}

func compare(a, b Device) int {
	return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.Device, b.Device))
}

// Conversation is a hash of a group, or of two users. What happens in one is
// judged together.
type Conversation uint16

// InGroup returns the conversation of a group.
func InGroup(group uint64) Conversation { return hashed(group * 0x9e3779b97f4a7c15) }

// Between returns the direct conversation of two users, in any order.
func Between(a, b uint64) Conversation { return hashed(a + b) }

func hashed(n uint64) Conversation {
	n ^= n >> 32
	return Conversation(n * 0xd6e8feb86659fd93 >> 48)
}

// Claimed returns the conversation that a frame for a device says it is in.
func Claimed(dev Device, d *wire.Deliver) Conversation {
	switch {
	case d.Group != 0:
		return InGroup(d.Group)
	case d.To != 0:
		return Between(d.From, d.To)
	}
	return Between(d.From, dev.User)
}

// Message is what a client is about to write for the first time.
type Message struct {
	ID     wire.MessageID
	Group  uint64 // exactly one of Group and Peer is set
	Peer   uint64
	Sender Device
	Seq    uint64 // of the sender's device in this conversation, from 1
	// Intended is when the schedule wanted it sent, on the clock of Delivery.At.
	Intended time.Duration
	// Addressees are the devices it should reach, sorted by user and device,
	// without repeats. Users of the group that Outside, Changing, Removed or Added
	// name are judged by those, whether they are in it or not.
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

// Delivery is what a device's application got, after the client's window.
type Delivery struct {
	To    Device
	Frame *wire.Deliver
	// In is the conversation that the message was written in, as far as its body
	// tells, else the one that the frame claims.
	In    Conversation
	Class Class
	// Online: the device was connected and current at the intended time, whether
	// the message came then or later.
	Online bool
	// Damaged: the body is not one that was written in this run.
	Damaged bool
	At      time.Duration
}

// Config of a judgement.
type Config struct {
	// Gated are the phases whose sends make the fan-out mean and the offline share.
	Gated []uint8
	// Devices returns how many devices (0, 1, ... n-1) a user has. It is asked for
	// users whose membership changed. Nil: only the devices seen in the
	// addressees of a group's messages are known.
	Devices func(user uint64) int
	// Sampled is the declared share of addressees to be proved; 0 means all.
	Sampled float64
	// ClockError is by how much the clocks of two spools may differ.
	ClockError time.Duration
}
