package system

import (
	"encoding/json"
	"testing"
)

// FuzzParseConfig: a topology is one that passes its own check and survives being
// written, or an error.
func FuzzParseConfig(f *testing.F) {
	cfg, err := SingleNode{Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Debug: "127.0.0.1:0", Data: f.TempDir(),
		Kafka: "127.0.0.1:9092", Redis: "127.0.0.1:6379", Provider: "http://127.0.0.1:9000"}.Config()
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"settings":{"exempt_addresses":["none"],"stamp_every":-1}}`))
	f.Add([]byte(`{"gateways":[{}],"kafka":{"brokers":[":"],"via":{"":""}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig("fuzz.json", data)
		if err != nil {
			return
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseConfig("again.json", b); err != nil {
			t.Fatalf("%s was accepted, and is not any more as %s: %v", data, b, err)
		}
	})
}
