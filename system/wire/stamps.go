package wire

import "fmt"

// WithStamps returns a copy of an encoded Frame{Deliver} that has the fields of s
// beside the stamps it has already: protobuf merges a message field that occurs
// twice, so that the first one need not be taken apart.
func WithStamps(frame []byte, s *Stamps) []byte {
	f := Frame{Kind: &Frame_Deliver{Deliver: &Deliver{Stamps: s}}}
	n := f.SizeVT()
	b := make([]byte, len(frame)+n)
	copy(b, frame)
	if _, err := f.MarshalToSizedBufferVT(b[len(frame):]); err != nil {
		panic(fmt.Sprintf("wire: encode stamps: %v", err)) // numbers alone can be encoded
	}
	return b
}
