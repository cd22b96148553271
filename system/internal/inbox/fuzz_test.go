package inbox

import (
	"bytes"
	"testing"

	"throng/system/wire"
)

// FuzzLedger: what is stored of a ledger is one, or refused.
func FuzzLedger(f *testing.F) {
	f.Add([]byte{9, 2, 5, 4, 1, 1, 0, 3, 7, 0, 5, 4})
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 1, 1, 1, 0xff, 0xff, 0xff, 0x7f, 0})
	f.Fuzz(func(t *testing.T, stored []byte) {
		l, err := decodeLedger(stored)
		if err != nil {
			return
		}
		b := l.encode()
		again, err := decodeLedger(b)
		if err != nil || !bytes.Equal(again.encode(), b) {
			t.Fatalf("%x is written as %x, and that read as %+v, %v", stored, b, again, err)
		}
	})
}

// FuzzStoredMessage: what a row holds is a message, or refused; with its inbox_seq it
// is a frame that a client reads.
func FuzzStoredMessage(f *testing.F) {
	b, err := (&wire.Deliver{MessageId: make([]byte, 16), From: 1, Seq: 2, Body: []byte("x")}).MarshalVT()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, uint64(7))
	f.Add([]byte{}, uint64(0))
	f.Add([]byte{0x0a, 0x03, 1, 2, 3}, ^uint64(0))
	f.Fuzz(func(t *testing.T, stored []byte, seq uint64) {
		m, err := storedMessage(stored)
		if err != nil {
			return
		}
		frame, err := wire.Proto.Decode(m.frameWithSeq(seq))
		if err != nil || frame.GetDeliver().GetInboxSeq() != seq || frame.GetDeliver().GetFrom() != m.From {
			t.Fatalf("%x goes out as %v, %v", stored, frame, err)
		}
	})
}
