package session

import (
	"bytes"
	"testing"
)

// FuzzEvents: a message between gateways is read to its end, or given up.
func FuzzEvents(f *testing.F) {
	f.Add(appendEvent(appendEvent(nil, event{topic: "u7", payload: []byte("x")}), event{topic: "g9"}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0})
	f.Fuzz(func(t *testing.T, message []byte) {
		var again []byte
		if each(message, func(topic string, payload []byte) { again = appendEvent(again, event{topic: topic, payload: payload}) }) {
			var last []byte
			if !each(again, func(topic string, payload []byte) { last = appendEvent(last, event{topic: topic, payload: payload}) }) || !bytes.Equal(again, last) {
				t.Fatalf("%x is written as %x, and that as %x", message, again, last)
			}
		}
	})
}

// FuzzField: a field of the registry names a session, or nothing.
func FuzzField(f *testing.F) {
	f.Add("2@gateway/0/17/9", "3")
	f.Add("@//", "-1")
	f.Add("4294967296@g/1/1", "x")
	f.Fuzz(func(t *testing.T, field, value string) {
		s, ok := parseField(field)
		u := userOf(map[string]string{field: value}, map[string]uint64{s.Gateway: s.Incarnation})
		if len(u.Sessions) > 0 && !ok {
			t.Fatalf("%q is no session, and counts as %+v", field, u.Sessions)
		}
	})
}
