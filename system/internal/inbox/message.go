package inbox

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// Field numbers of chat.proto that frames are put together from by hand, so
// that a body is encoded once in its life and copied from then on.
const (
	frameDeliverField    = 17
	deliverInboxSeqField = 10
	deliverStampsField   = 14
)

// Message is a message as a mailbox handles it: what decisions need, and the
// bytes. It is immutable.
type Message struct {
	ID         [16]byte
	Group      uint64 // 0: direct
	From       uint64
	FromDevice uint32
	// bare is not 0 for those that get a time at each stage: the stamps so far
	// are what follows that many bytes of Deliver.
	bare uint32
	Seq  uint64
	// frame is an encoded Frame{Deliver} without inbox_seq; Deliver is the part
	// of it that is stored.
	frame   []byte
	Deliver []byte
	change  *wire.GroupChange // of a system message, while it is being appended

	traceparent string // of the inbox's span, empty if it is not traced
}

func (m *Message) stamped() bool { return m.bare > 0 }

// row is what a row of a device holds of the message. Stamps are of use to a
// device that is connected and has fallen behind: for it the detour through a
// row is a part of the way. Whoever is away gets no stamps.
func (m *Message) row(d *device) []byte {
	if m.stamped() && (d.session == nil || d.session.live) {
		return m.Deliver[:m.bare]
	}
	return m.Deliver
}

// NewMessage encodes an envelope; own: as the copy of a direct message for the
// sender's other devices. An id that is not 16 bytes is an error.
func NewMessage(e *rpc.Envelope, own bool) (*Message, error) {
	if len(e.GetMessageId()) != 16 {
		return nil, fmt.Errorf("inbox: message id of %d bytes, want 16", len(e.GetMessageId()))
	}
	d := wire.Deliver{MessageId: e.MessageId, Group: e.Group, From: e.From, FromDevice: e.FromDevice, Seq: e.Seq,
		Kind: e.Kind, Body: e.Body, AcceptedMs: e.AcceptedMs, Offset: e.Offset, About: e.About, Change: e.Change,
		Media: e.Media, MediaGrant: e.MediaGrant, Traceparent: e.Traceparent}
	if own {
		d.To = e.To
	}
	bare := d.SizeVT()
	n, stamps := bare, 0
	if e.Stamps != nil && !own { // they are of the addressee's
		stamps = e.Stamps.SizeVT()
		n += protowire.SizeTag(deliverStampsField) + protowire.SizeBytes(stamps)
	}
	frame := appendDeliverHeader(make([]byte, 0, n+8), n)
	h := len(frame)
	frame = frame[:h+n]
	if _, err := d.MarshalToSizedBufferVT(frame[h : h+bare]); err != nil {
		return nil, fmt.Errorf("inbox: encode message: %w", err)
	}
	if n == bare {
		bare = 0
	} else { // after all others, so that what is before them is the message without
		b := protowire.AppendTag(frame[:h+bare], deliverStampsField, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(stamps))
		if _, err := e.Stamps.MarshalToSizedBufferVT(frame[len(b):]); err != nil {
			return nil, fmt.Errorf("inbox: encode stamps: %w", err)
		}
	}
	return &Message{ID: [16]byte(e.MessageId), Group: e.Group, From: e.From, FromDevice: e.FromDevice, Seq: e.Seq,
		frame: frame, Deliver: frame[h:], bare: uint32(bare), change: e.Change, traceparent: e.Traceparent}, nil
}

// storedMessage reads back what a row holds.
func storedMessage(deliver []byte) (*Message, error) {
	var d wire.Deliver
	if err := d.UnmarshalVT(deliver); err != nil {
		return nil, fmt.Errorf("inbox: stored message: %w", err)
	}
	m := &Message{Group: d.Group, From: d.From, FromDevice: d.FromDevice, Seq: d.Seq, Deliver: deliver, traceparent: d.Traceparent}
	if d.Stamps != nil {
		m.bare = uint32(len(deliver))
	}
	copy(m.ID[:], d.MessageId)
	return m, nil
}

// frameWithSeq returns an encoded Frame{Deliver} that carries inbox_seq.
// Protobuf allows a field to be appended to an encoded message.
func (m *Message) frameWithSeq(seq uint64) []byte {
	n := len(m.Deliver) + protowire.SizeTag(deliverInboxSeqField) + protowire.SizeVarint(seq)
	b := appendDeliverHeader(make([]byte, 0, n+8), n)
	b = append(b, m.Deliver...)
	b = protowire.AppendTag(b, deliverInboxSeqField, protowire.VarintType)
	return protowire.AppendVarint(b, seq)
}

func appendDeliverHeader(b []byte, n int) []byte {
	b = protowire.AppendTag(b, frameDeliverField, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(n))
}
