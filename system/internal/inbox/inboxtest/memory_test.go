package inboxtest

import (
	"testing"

	"throng/system/internal/inbox"
)

func TestMemoryConformance(t *testing.T) {
	stores := map[*testing.T]*Memory{}
	Conformance(t, func(t *testing.T) inbox.Store {
		if stores[t] == nil {
			stores[t] = NewMemory()
		}
		return stores[t]
	})
}
