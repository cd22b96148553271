package wire

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
)

// TestWithStamps: what is appended on the way joins what is there, the frame
// that others share stays as it was, and so does the first Deliver for a reader that
// takes the last occurrence of a field.
func TestWithStamps(t *testing.T) {
	first := &Frame{Kind: &Frame_Deliver{Deliver: &Deliver{From: 7, Seq: 3, Body: []byte("hello"), InboxSeq: 9,
		Stamps: &Stamps{GatewayInUs: 1, InboxInUs: 5}}}}
	shared, err := Proto.Encode(first)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(shared)
	got := WithStamps(WithStamps(shared, &Stamps{InboxOutUs: 6}), &Stamps{GatewayOutUs: 7})
	if !bytes.Equal(shared, before) {
		t.Fatal("the frame that others share was changed")
	}
	want := proto.Clone(first).(*Frame)
	want.GetDeliver().Stamps = &Stamps{GatewayInUs: 1, InboxInUs: 5, InboxOutUs: 6, GatewayOutUs: 7}
	fast, slow := &Frame{}, &Frame{}
	if err := fast.UnmarshalVT(got); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(got, slow); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(got, shared) || bytes.Contains(got[len(shared):], shared[:1]) {
		t.Errorf("a second Deliver was appended: % x", got[len(shared):])
	}
	for _, f := range []*Frame{fast, slow} {
		f.CollectStamps()
		if !proto.Equal(f, want) {
			t.Errorf("read back as %v, want %v", f, want)
		}
	}
}
