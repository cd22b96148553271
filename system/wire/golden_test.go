package wire

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func seqBytes(first byte) []byte {
	b := make([]byte, 16)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

// goldens are what the files in testdata/wire say, by name of file. The files
// are written by hand from chat.proto, so that neither the generated code nor a
// change of field numbers can agree with itself unnoticed.
func goldens() map[string]*Frame {
	const ms = 1_700_000_000_000
	return map[string]*Frame{
		"sync":           {Kind: &Frame_Sync{&Sync{InboxSeq: 300}}},
		"sync_empty":     {Kind: &Frame_Sync{&Sync{}}},
		"send_direct":    {Kind: &Frame_Send{&Send{ClientMsgId: 7, User: 258, Seq: 1, Body: []byte("hi")}}},
		"send_group":     {Kind: &Frame_Send{&Send{ClientMsgId: 128, Group: 5, Seq: 2, Chain: seqBytes(0), Kind: Kind_KIND_IMAGE, Body: []byte{0xff, 0xd8, 0xff, 0xe0, 0}}}},
		"ack":            {Kind: &Frame_Ack{&Ack{Upto: 200}}},
		"read_direct":    {Kind: &Frame_Read{&Read{From: 9, FromDevice: 1, UptoSeq: 17}}},
		"read_group":     {Kind: &Frame_Read{&Read{Group: 5, From: 9, UptoSeq: 1}}},
		"typing":         {Kind: &Frame_Typing{&Typing{User: 9}}},
		"presence":       {Kind: &Frame_Presence{&Presence{Available: true}}},
		"view":           {Kind: &Frame_View{&View{Group: 5}}},
		"ping":           {Kind: &Frame_Ping{&Ping{Nonce: 42}}},
		"sent":           {Kind: &Frame_Sent{&Sent{ClientMsgId: 7, MessageId: seqBytes(0xa0), Chain: seqBytes(0xb0), AcceptedMs: ms}}},
		"deliver_direct": {Kind: &Frame_Deliver{&Deliver{MessageId: seqBytes(0xa0), From: 9, FromDevice: 1, Seq: 17, Body: []byte("hi"), AcceptedMs: ms, InboxSeq: 300}}},
		"deliver_group":  {Kind: &Frame_Deliver{&Deliver{MessageId: seqBytes(0xa0), Group: 5, From: 9, Seq: 1, Kind: Kind_KIND_VOICE, Body: []byte("Ogg"), AcceptedMs: ms, Offset: 70_000}}},
		"current":        {Kind: &Frame_Current{&Current{Delivered: 130}}},
		"receipts":       {Kind: &Frame_Receipts{&Receipts{Receipts: []*Receipt{{Peer: 9, DeliveredSeq: 3, ReadSeq: 2}, {Group: 5, Peer: 258, DeliveredSeq: 1}}}}},
		"typing_event":   {Kind: &Frame_TypingEvent{&TypingEvent{Group: 5, From: 9}}},
		"presence_event": {Kind: &Frame_PresenceEvent{&PresenceEvent{User: 9, LastSeenMs: ms}}},
		"error":          {Kind: &Frame_Error{&Error{Code: Code_CODE_SEQUENCE, ClientMsgId: 7, Detail: "no", ExpectedSeq: 3, RetryAfterMs: 200}}},
		"error_refused":  {Kind: &Frame_Error{&Error{Code: Code_CODE_NOT_MEMBER, ClientMsgId: 7, Chain: seqBytes(0xb0)}}},
		"drain":          {Kind: &Frame_Drain{&Drain{JitterMs: 3000}}},
		"pong":           {Kind: &Frame_Pong{&Pong{Nonce: 42}}},
		"send_reaction":  {Kind: &Frame_Send{&Send{ClientMsgId: 7, User: 258, Seq: 1, Kind: Kind_KIND_REACTION, Body: []byte{0xf0, 0x9f, 0x91}, About: seqBytes(0xa0)}}},
		"deliver_system": {Kind: &Frame_Deliver{&Deliver{MessageId: seqBytes(0xa0), Group: 5, Seq: 3, Kind: Kind_KIND_SYSTEM, AcceptedMs: ms, Offset: 70_000,
			Change: &GroupChange{Version: 3, By: 9, Add: []uint64{258}, Size: 3}}}},
		"deliver_copy": {Kind: &Frame_Deliver{&Deliver{MessageId: seqBytes(0xa0), From: 9, Seq: 1, Body: []byte("hi"), AcceptedMs: ms, To: 258,
			Stamps: &Stamps{GatewayInUs: 1, GatewayOutUs: 2}}}},
		"deliver_stamped": {Kind: &Frame_Deliver{&Deliver{MessageId: seqBytes(0xa0), Group: 5, From: 9, Seq: 1, Body: []byte("hi"), AcceptedMs: ms, Offset: 70_000,
			Stamps: &Stamps{GatewayInUs: 1}}}, Stamps: []*Stamps{{GatewayOutUs: 2}}},
		"group_request": {Kind: &Frame_GroupRequest{&GroupRequest{RequestId: 7, Action: GroupRequest_ACTION_CREATE, Users: []uint64{9, 258}, Name: proto.String("Tea")}}},
		"group_result": {Kind: &Frame_GroupResult{&GroupResult{RequestId: 7, Group: &GroupInfo{Group: 5, Version: 3, Name: "Tea", Size: 2,
			Members: []*GroupMember{{User: 9, Admin: true}}}}}},
		"receipts_request": {Kind: &Frame_ReceiptsRequest{&ReceiptsRequest{RequestId: 7, Group: 5}}},
		"receipt_list":     {Kind: &Frame_ReceiptList{&ReceiptList{RequestId: 7, Receipts: []*Receipt{{Peer: 9, DeliveredSeq: 3, ReadSeq: 2}}}}},
		"privacy":          {Kind: &Frame_Privacy{&Privacy{HideLastSeen: true}}},
	}
}

// readHex reads a file of hexadecimal bytes with # comments.
func readHex(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatalf("%s:%d: %v", path, i+1, err)
		}
		out = append(out, b...)
	}
	return out
}

func goldenFiles(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("../../testdata/wire/*.hex")
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for _, p := range paths {
		files[strings.TrimSuffix(filepath.Base(p), ".hex")] = readHex(t, p)
	}
	return files
}

func TestGoldenFrames(t *testing.T) {
	files, want := goldenFiles(t), goldens()
	seen := map[string]bool{}
	for name, raw := range files {
		t.Run(name, func(t *testing.T) {
			f := want[name]
			if f == nil {
				t.Fatal("nothing says what this file means")
			}
			got, err := Proto.Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			// Encoders write what is in a oneof last: a frame that stamps were
			// appended to is one that they do not write.
			if !proto.Equal(got, f) {
				t.Errorf("decoded\n %v, want\n %v", protojson.Format(got), protojson.Format(f))
			}
			if again, err := Proto.Encode(got); f.Stamps == nil && (err != nil || !bytes.Equal(again, raw)) {
				t.Errorf("encoded again %x, %v, want %x", again, err, raw)
			}
			// The other encoder of protobuf agrees.
			if again, err := (proto.MarshalOptions{Deterministic: true}).Marshal(f); f.Stamps == nil && (err != nil || !bytes.Equal(again, raw)) {
				t.Errorf("encoded by reflection %x, %v, want %x", again, err, raw)
			}
			j, err := JSON.Encode(got)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := JSON.Decode(j); err != nil || !proto.Equal(back, f) {
				t.Errorf("through JSON %s: %v, %v", j, back, err)
			}
			seen[kindOf(f)] = true
		})
	}
	for name, f := range want {
		if files[name] == nil {
			t.Errorf("no file %s.hex", name)
		}
		seen[kindOf(f)] = true
		seen["stamps"] = seen["stamps"] || len(f.Stamps) > 0
	}
	fields := (&Frame{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if n := string(fields.Get(i).Name()); !seen[n] {
			t.Errorf("no golden frame of kind %s", n)
		}
	}
}

// kindOf returns the name of the field of Frame that is set.
func kindOf(f *Frame) string {
	m := f.ProtoReflect()
	if fd := m.WhichOneof(m.Descriptor().Oneofs().Get(0)); fd != nil {
		return string(fd.Name())
	}
	return ""
}
