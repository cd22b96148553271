package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func testKey() Key { return Key(strings.Repeat("k", MinKeyBytes)) }

func TestJSONIsStrict(t *testing.T) {
	for _, bad := range []string{"", "null,", `{"sync":{"inbox":1}}`, `{"nonsense":{}}`, `{"sync":{},"ping":{}}`,
		`{"send":{"body":"%%%"}}`, `{"error":{"detail":"` + "\xff" + `"}}`, `{"sync":{}} {}`} {
		if f, err := JSON.Decode([]byte(bad)); err == nil {
			t.Errorf("%q decodes to %v", bad, f)
		}
	}
	f, err := JSON.Decode([]byte(`{"send":{"client_msg_id":"5","user":"9","seq":1,"body":"aGk="}}`))
	if err != nil || string(f.GetSend().GetBody()) != "hi" || f.GetSend().GetClientMsgId() != 5 {
		t.Errorf("%v, %v", f, err)
	}
}

func TestDecodeKeepsNothing(t *testing.T) {
	raw, err := Proto.Encode(&Frame{Kind: &Frame_Send{&Send{ClientMsgId: 1, User: 2, Seq: 1, Body: []byte("body")}}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Proto.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	clear(raw) // buffers are shared and used again
	if string(f.GetSend().GetBody()) != "body" {
		t.Errorf("body is now %q", f.GetSend().GetBody())
	}
}

func TestLimitsFit(t *testing.T) {
	biggest := &Frame{Kind: &Frame_Send{&Send{ClientMsgId: 1<<64 - 1, User: 1, Seq: 1<<64 - 1, Chain: seqBytes(0), Kind: Kind_KIND_OTHER, Body: make([]byte, MaxBodyBytes)}}}
	b, err := Proto.Encode(biggest)
	if err != nil || len(b) > MaxFrameBytes {
		t.Errorf("the largest body makes %d bytes, %v", len(b), err)
	}
	if err := Validate(biggest); err != nil {
		t.Error(err)
	}
	out := &Frame{Kind: &Frame_Deliver{&Deliver{MessageId: seqBytes(0), Group: 1, From: 1, FromDevice: 1<<32 - 1, Seq: 1<<64 - 1, Kind: 4, Body: make([]byte, MaxBodyBytes), AcceptedMs: 1 << 62, Offset: 1 << 62, InboxSeq: 1<<64 - 1,
		About: seqBytes(0), To: 1, Stamps: &Stamps{GatewayInUs: 1, MessageInUs: 1, LoggedUs: 1, FanoutInUs: 1, InboxInUs: 1, InboxOutUs: 1, GatewayOutUs: 1}}}}
	for _, format := range []Format{Proto, JSON} {
		if b, err := format.Encode(out); err != nil || len(b) > MaxServerFrameBytes {
			t.Errorf("%s: the largest Deliver makes %d bytes, %v", format.Subprotocol(), len(b), err)
		}
	}
}

func TestValidate(t *testing.T) {
	send := func(change func(*Send)) *Frame {
		s := &Send{ClientMsgId: 5, User: 1, Seq: 1}
		change(s)
		return &Frame{Kind: &Frame_Send{s}}
	}
	for name, f := range goldens() {
		client := map[string]bool{"sync": true, "sync_empty": true, "send_direct": true, "send_group": true, "ack": true,
			"read_direct": true, "read_group": true, "typing": true, "presence": true, "view": true, "ping": true,
			"send_reaction": true, "group_request": true, "receipts_request": true, "privacy": true}[name]
		err := Validate(f)
		var fe *FrameError
		if client != (err == nil) || (err != nil && (!errors.As(err, &fe) || !fe.Fatal)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, tc := range []struct {
		name  string
		f     *Frame
		code  Code
		fatal bool
	}{
		{"no kind", &Frame{}, Code_CODE_INVALID, true},
		{"no id", send(func(s *Send) { s.ClientMsgId = 0 }), Code_CODE_INVALID, true},
		{"both", send(func(s *Send) { s.Group = 2 }), Code_CODE_INVALID, false},
		{"neither", send(func(s *Send) { s.User = 0 }), Code_CODE_INVALID, false},
		{"seq 0", send(func(s *Send) { s.Seq = 0 }), Code_CODE_INVALID, false},
		{"chain", send(func(s *Send) { s.Chain = []byte{1} }), Code_CODE_INVALID, false},
		{"kind", send(func(s *Send) { s.Kind = 77 }), Code_CODE_INVALID, false},
		{"kind of servers", send(func(s *Send) { s.Kind = Kind_KIND_SYSTEM }), Code_CODE_INVALID, false},
		{"edit of nothing", send(func(s *Send) { s.Kind = Kind_KIND_EDIT }), Code_CODE_INVALID, false},
		{"about, cut", send(func(s *Send) { s.Kind, s.About = Kind_KIND_DELETE, seqBytes(0)[:15] }), Code_CODE_INVALID, false},
		{"text about", send(func(s *Send) { s.About = seqBytes(0) }), Code_CODE_INVALID, false},
		{"group request", &Frame{Kind: &Frame_GroupRequest{&GroupRequest{Group: 1}}}, Code_CODE_INVALID, true},
		{"receipts request", &Frame{Kind: &Frame_ReceiptsRequest{&ReceiptsRequest{RequestId: 1}}}, Code_CODE_INVALID, true},
		{"body", send(func(s *Send) { s.Body = make([]byte, MaxBodyBytes+1) }), Code_CODE_TOO_LARGE, false},
		{"read", &Frame{Kind: &Frame_Read{&Read{From: 1}}}, Code_CODE_INVALID, true},
		{"typing", &Frame{Kind: &Frame_Typing{&Typing{}}}, Code_CODE_INVALID, true},
		{"view", &Frame{Kind: &Frame_View{&View{User: 1, Group: 1}}}, Code_CODE_INVALID, true},
	} {
		var fe *FrameError
		if err := Validate(tc.f); !errors.As(err, &fe) || fe.Code != tc.code || fe.Fatal != tc.fatal || (!tc.fatal && fe.ClientMsgID != 5) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestMessageFraming(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(65_000, 66_000), rapid.Just(125), rapid.Just(126), rapid.Just(65_535), rapid.Just(65_536)).Draw(t, "n")
		op := rapid.SampledFrom([]byte{OpText, OpBinary}).Draw(t, "op")
		mask := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "mask"))
		payload := make([]byte, n)
		rand.NewChaCha8([32]byte{1}).Read(payload)
		check := func(b []byte, masked bool) {
			for cut := range min(len(b), 14) {
				if h, used, err := ParseHeader(b[:cut]); err != nil || used > cut {
					t.Fatalf("cut at %d: %v %d %v", cut, h, used, err)
				}
			}
			h, used, err := ParseHeader(b)
			if err != nil || !h.Fin || h.Opcode != op || h.Len != n || h.Masked != masked || len(b) != used+n {
				t.Fatalf("header %+v, %d, %v", h, used, err)
			}
			got := bytes.Clone(b[used:])
			if masked {
				Mask(got, h.Mask)
			}
			if !bytes.Equal(got, payload) {
				t.Fatal("payload differs")
			}
		}
		check(AppendClientMessage(nil, op, payload, mask), true)
		b := AppendServerMessage([]byte("before"), op, payload)[6:]
		check(b, false)
		if len(b) != ServerHeaderLen(n)+n {
			t.Fatalf("ServerHeaderLen(%d) = %d", n, ServerHeaderLen(n))
		}
	})
}

func TestServerMessage(t *testing.T) {
	for name, f := range goldens() {
		for _, format := range []Format{Proto, JSON} {
			b, err := format.ServerMessage(f)
			if err != nil {
				t.Fatal(err)
			}
			h, n, err := ParseHeader(b)
			if err != nil || h.Opcode != format.Opcode() || h.Masked || len(b) != n+h.Len {
				t.Fatalf("%s: %+v %d %v", name, h, n, err)
			}
			if got, err := format.Decode(b[n:]); err != nil || !proto.Equal(got, f) {
				t.Errorf("%s: %v %v", name, got, err)
			}
		}
	}
}

func TestCloseCodes(t *testing.T) {
	names := map[string]bool{}
	for _, c := range CloseCodes() {
		if c < 4000 || c > 4999 || c.Reconnect() != (c < 4500) {
			t.Errorf("%d: reconnect %v", c, c.Reconnect())
		}
		if s := c.String(); s == "" || strings.HasPrefix(s, "code_") || names[s] {
			t.Errorf("%d is called %q", c, s)
		}
		names[c.String()] = true
	}
	if b := AppendCloseMessage(nil, CloseReplaced, strings.Repeat("x", 200)); len(b) != 2+MaxControlPayload || b[1] != MaxControlPayload || b[2] != 0x11 || b[3] != 0x94 {
		t.Errorf("close message %x", b)
	}
}

func TestTokens(t *testing.T) {
	k := testKey()
	want := Claims{User: 1<<64 - 1, Device: 3, Admin: true, Expires: time.Now().Add(time.Hour).Truncate(time.Second)}
	tok, err := k.Sign(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.Verify(tok)
	if err != nil || got.User != want.User || got.Device != 3 || !got.Admin || !got.Expires.Equal(want.Expires) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := Key("short").Sign(want); err == nil {
		t.Error("a short key signs")
	}
	if k2, err := ParseKey(k.String()); err != nil || !bytes.Equal(k2, k) {
		t.Errorf("key through text: %v", err)
	}
	sign := func(method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
		s, err := jwt.NewWithClaims(method, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	exp := time.Now().Add(time.Hour).Unix()
	parts := strings.Split(tok, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	forged := parts[0] + "." + base64.RawURLEncoding.EncodeToString(bytes.Replace(payload, []byte(`"dev":3`), []byte(`"dev":4`), 1)) + "." + parts[2]
	if forged == tok {
		t.Fatalf("nothing was forged in %s", payload)
	}
	for name, bad := range map[string]string{
		"empty": "", "garbage": "a.b.c", "forged": forged,
		"other key":    sign(jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), jwt.MapClaims{"sub": "1", "exp": exp}),
		"other method": sign(jwt.SigningMethodHS512, []byte(k), jwt.MapClaims{"sub": "1", "exp": exp}),
		"none":         sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"sub": "1", "exp": exp}),
		"expired":      sign(jwt.SigningMethodHS256, []byte(k), jwt.MapClaims{"sub": "1", "exp": time.Now().Add(-time.Second).Unix()}),
		"no expiry":    sign(jwt.SigningMethodHS256, []byte(k), jwt.MapClaims{"sub": "1"}),
		"user 0":       sign(jwt.SigningMethodHS256, []byte(k), jwt.MapClaims{"sub": "0", "exp": exp}),
		"not a number": sign(jwt.SigningMethodHS256, []byte(k), jwt.MapClaims{"sub": "bob", "exp": exp}),
		"negative":     sign(jwt.SigningMethodHS256, []byte(k), jwt.MapClaims{"sub": "1", "dev": -1, "exp": exp}),
		"far too long": strings.Repeat("a", MaxTokenBytes+1),
	} {
		if c, err := k.Verify(bad); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestChain(t *testing.T) {
	k := testKey()
	conv := Conversation{User: 9}
	c := Chain(k, 1, 2, conv, 3)
	if !VerifyChain(k, 1, 2, conv, 3, c[:]) || c != Chain(k, 1, 2, conv, 3) {
		t.Fatal("a chain value does not verify")
	}
	other := Key(strings.Repeat("o", MinKeyBytes))
	for i, ok := range []bool{
		VerifyChain(other, 1, 2, conv, 3, c[:]), VerifyChain(k, 2, 2, conv, 3, c[:]), VerifyChain(k, 1, 3, conv, 3, c[:]),
		VerifyChain(k, 1, 2, Conversation{Group: 9}, 3, c[:]), VerifyChain(k, 1, 2, conv, 4, c[:]),
		VerifyChain(k, 1, 2, conv, 3, c[:15]), VerifyChain(k, 1, 2, conv, 3, nil),
	} {
		if ok {
			t.Errorf("case %d verifies", i)
		}
	}
}

func TestIDOf(t *testing.T) {
	// Worked out with another SHA-256: stored messages carry these ids.
	const want = "d080b027aa0b76421acdd6f8431e6d59"
	id := IDOf(1, 2, 3)
	if hex.EncodeToString(id[:]) != want || IDOf(1, 3, 2) == id || IDOf(2, 2, 3) == id {
		t.Errorf("IDOf(1, 2, 3) = %x, want %s", id, want)
	}
}

// A Window never takes what has not come for a duplicate, and knows every
// duplicate that is not older than WindowSize.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w Window
		seen := map[uint64]bool{}
		var highest uint64
		steps := rapid.SliceOfN(rapid.OneOf(rapid.Int64Range(-80, 5), rapid.Just(int64(1)), rapid.Int64Range(-3, 200)), 1, 300).Draw(t, "steps")
		for _, d := range steps {
			seq := int64(highest) + d
			if seq < 1 {
				continue
			}
			s := uint64(seq)
			got := w.Accept(s)
			if !got && !seen[s] {
				t.Fatalf("Accept(%d) = false with highest %d: it has not come before", s, highest)
			}
			if got && seen[s] && highest-s <= WindowSize {
				t.Fatalf("Accept(%d) = true with highest %d: it has come before", s, highest)
			}
			seen[s] = true
			highest = max(highest, s)
			if w.Highest() != highest {
				t.Fatalf("Highest() = %d, want %d", w.Highest(), highest)
			}
		}
	})
	var w Window
	for _, tc := range []struct {
		seq  uint64
		want bool
	}{{1, true}, {1, false}, {3, true}, {2, true}, {2, false}, {3, false}, {67, true}, {3, false}, {1, true}, {4, true}, {1000, true}, {999, true}, {67, true}, {0, true}, {0, true}, {1 << 63, true}, {1<<63 - 64, true}, {1<<63 - 64, false}} {
		if got := w.Accept(tc.seq); got != tc.want {
			t.Errorf("Accept(%d) = %v", tc.seq, got)
		}
	}
}

// A fan-out that takes a partition over sends hundreds of messages again.
func TestWindowKnowsAnUnbrokenRunHoweverLong(t *testing.T) {
	var w Window
	for seq := uint64(5); seq <= 10_000; seq++ {
		w.Accept(seq)
	}
	for seq := uint64(5); seq <= 10_000; seq++ {
		if w.Accept(seq) {
			t.Fatalf("%d came again and is taken to be fresh", seq)
		}
	}
	if !w.Accept(4) {
		t.Error("4 has not come before")
	}
}

// TestAck: the short way reads what Decode reads, or leaves it to Decode.
func TestAck(t *testing.T) {
	for _, upto := range []uint64{1, 127, 128, 300, 1 << 40, 1<<64 - 1} {
		raw, err := Proto.Encode(&Frame{Kind: &Frame_Ack{Ack: &Ack{Upto: upto}}})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := Proto.Ack(raw); !ok || got != upto {
			t.Errorf("Ack(%x) = %d, %v, want %d", raw, got, ok, upto)
		}
		if _, ok := JSON.Ack(raw); ok {
			t.Errorf("Ack(%x) in JSON", raw)
		}
		for n := range raw { // cut off, and with more behind it
			if _, ok := Proto.Ack(raw[:n]); ok {
				t.Errorf("Ack(%x) of %x", raw[:n], raw)
			}
		}
		if _, ok := Proto.Ack(append(raw, raw...)); ok {
			t.Errorf("Ack of %x twice", raw)
		}
	}
}

func FuzzDecodeProto(f *testing.F) {
	for _, raw := range goldenFiles(f) {
		f.Add(raw)
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{0x12, 0x84, 0x80, 0x80, 0x80, 0x08})
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Proto.Decode(raw)
		if upto, ok := Proto.Ack(raw); ok && (err != nil || m.GetAck() == nil || m.GetAck().GetUpto() != upto) {
			t.Fatalf("an Ack of %d, or %v, %v", upto, m, err)
		}
		if err != nil {
			return
		}
		_ = Validate(m) // must not panic
		b, err := Proto.Encode(m)
		if err != nil {
			t.Fatalf("decoded, but cannot be encoded: %v", err)
		}
		again, err := Proto.Decode(b)
		if err != nil || !proto.Equal(m, again) {
			t.Fatalf("changes when encoded again: %v, %v, %v", m, again, err)
		}
	})
}

func FuzzDecodeJSON(f *testing.F) {
	for _, m := range goldens() {
		j, err := JSON.Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(j)
	}
	f.Add([]byte(`{"send":{"seq":"18446744073709551616"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := JSON.Decode(raw)
		if err != nil {
			return
		}
		_ = Validate(m)
		b, err := JSON.Encode(m)
		if err != nil || !json.Valid(b) {
			t.Fatalf("decoded, but encodes to %q, %v", b, err)
		}
		if again, err := JSON.Decode(b); err != nil || !proto.Equal(m, again) {
			t.Fatalf("changes when encoded again: %v, %v, %v", m, again, err)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	f.Add(AppendClientMessage(nil, OpBinary, []byte("x"), [4]byte{1, 2, 3, 4}))
	f.Add(AppendServerHeader(nil, OpText, 70_000))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := ParseHeader(b)
		if n > len(b) || n > 14 || h.Len < 0 || (err != nil && n != 0) {
			t.Fatalf("%+v %d %v", h, n, err)
		}
	})
}

func benchFrames() map[string]*Frame {
	g := goldens()
	return map[string]*Frame{"send": g["send_direct"], "deliver": g["deliver_group"], "ack": g["ack"], "sent": g["sent"]}
}

func BenchmarkEncode(b *testing.B) {
	for name, f := range benchFrames() {
		for _, format := range []Format{Proto, JSON} {
			b.Run(fmt.Sprintf("%s/%s", name, format.Subprotocol()), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := format.ServerMessage(f); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
			})
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for name, f := range benchFrames() {
		for _, format := range []Format{Proto, JSON} {
			raw, err := format.Encode(f)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/%s", name, format.Subprotocol()), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := format.Decode(raw); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
			})
		}
	}
}

func BenchmarkToken(b *testing.B) {
	tok, err := testKey().Sign(Claims{User: 1, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := testKey().Verify(tok); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChain(b *testing.B) {
	k := testKey()
	b.ReportAllocs()
	for b.Loop() {
		Chain(k, 1, 2, Conversation{User: 3}, 4)
	}
}
