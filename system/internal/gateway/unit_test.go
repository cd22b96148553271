package gateway

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"throng/system/wire"
)

// Ids are never used twice, and find their connection and no other.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tab table
		live := map[uint64]*conn{}
		dead := map[uint64]bool{}
		for _, add := range rapid.SliceOfN(rapid.Bool(), 1, 200).Draw(t, "adds") {
			if add || len(live) == 0 {
				c := &conn{}
				tab.add(c)
				if c.id == 0 || live[c.id] != nil || dead[c.id] {
					t.Fatalf("id %x was used before", c.id)
				}
				live[c.id] = c
				continue
			}
			for id, c := range live {
				tab.remove(c)
				tab.remove(c)
				delete(live, id)
				dead[id] = true
				break
			}
		}
		for id, c := range live {
			if tab.get(id) != c {
				t.Fatalf("get(%x) is another connection", id)
			}
		}
		for id := range dead {
			if tab.get(id) != nil {
				t.Fatalf("get(%x) finds a connection that has gone", id)
			}
		}
		if tab.count() != len(live) || len(tab.all()) != len(live) || len(tab.part(0, 2))+len(tab.part(1, 2)) != len(live) {
			t.Fatal("counts differ")
		}
		if tab.get(1<<63|1<<31) != nil || tab.get(0) != nil {
			t.Fatal("an id that never was finds something")
		}
	})
}

func TestFrameKind(t *testing.T) {
	fields := (&wire.Frame{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if fields.Get(i).ContainingOneof() == nil {
			continue // beside the kind
		}
		f := &wire.Frame{}
		m := f.ProtoReflect()
		m.Set(fields.Get(i), m.NewField(fields.Get(i)))
		b, err := wire.Proto.Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		kind := frameKind(b)
		if kind != int(fields.Get(i).Number()) || kindName(kind) != string(fields.Get(i).Name()) {
			t.Errorf("%s has kind %d, %q", fields.Get(i).Name(), kind, kindName(kind))
		}
	}
	for _, b := range [][]byte{nil, {0x80}, {0xff, 0xff}, {0xfa, 0x01}} {
		if k := frameKind(b); k != kindOther {
			t.Errorf("%x has kind %d", b, k)
		}
	}
}

func TestAllow(t *testing.T) {
	c := &conn{g: &Gateway{limits: Limits{FramesPerSecond: 10, FrameBurst: 5}}}
	count := func(now time.Duration) (n int) {
		for c.allow(now) {
			n++
		}
		return n
	}
	// The burst, and the one that fits when the bucket has just a drop left.
	if n := count(time.Second); n != 6 {
		t.Errorf("%d frames at once", n)
	}
	if n := count(time.Second + 300*time.Millisecond); n != 3 {
		t.Errorf("%d frames after 0.3 s", n)
	}
	if n := count(time.Minute); n != 6 {
		t.Errorf("%d frames after a pause", n)
	}
}

func TestLimitsDefaults(t *testing.T) {
	l := Limits{InFlight: 3}.withDefaults()
	if l.InFlight != 3 || l.IdleTimeout != wire.IdleTimeout || l.PendingBytes != 256<<10 || l.PendingBytes < wire.MaxServerFrameBytes {
		t.Errorf("%+v", l)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{ID: "a", Key: testKey(), Messages: []string{"127.0.0.1:1"}, Inboxes: []string{"127.0.0.1:1"}}
	for name, change := range map[string]func(*Config){
		"no id":       func(c *Config) { c.ID = "" },
		"short key":   func(c *Config) { c.Key = c.Key[:5] },
		"no messages": func(c *Config) { c.Messages = nil },
		"no inboxes":  func(c *Config) { c.Inboxes = nil },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	g, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if g.Ready() == nil {
		t.Error("ready before Run")
	}
	g.hangUp()
}
