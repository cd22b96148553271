package group

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"throng/system/wire"
)

// FuzzProvision: a body of the provisioning API ends, or is an error of the caller.
func FuzzProvision(f *testing.F) {
	b, err := (&wire.Provision{Groups: []*wire.ProvisionGroup{{Group: 3, Name: "g", Members: []uint64{1}}}}).MarshalVT()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(protowire.AppendBytes(protowire.AppendBytes(nil, b), b))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{3, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := bufio.NewReader(bytes.NewReader(body))
		for range len(body) + 1 {
			_, err := readProvision(r)
			switch {
			case errors.Is(err, io.EOF):
				return
			case errors.Is(err, errInvalid), errors.Is(err, errTooLarge):
				return
			case err != nil:
				t.Fatalf("%x: %v", body, err)
			}
		}
		t.Fatalf("%x has no end", body)
	})
}
