package wire

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
)

// Format is how a Frame is written in a WebSocket message; the subprotocol
// decides it for the life of a connection.
type Format uint8

// Formats.
const (
	Proto Format = iota // binary messages
	JSON                // text messages
)

// FormatOf returns the format of a subprotocol, and whether there is one.
func FormatOf(subprotocol string) (Format, bool) {
	switch subprotocol {
	case SubprotocolProto:
		return Proto, true
	case SubprotocolJSON:
		return JSON, true
	}
	return 0, false
}

// Subprotocol returns the subprotocol of a format.
func (f Format) Subprotocol() string {
	if f == JSON {
		return SubprotocolJSON
	}
	return SubprotocolProto
}

// Opcode returns the WebSocket opcode of messages in this format.
func (f Format) Opcode() byte {
	if f == JSON {
		return OpText
	}
	return OpBinary
}

// Append appends the encoded frame to dst. It fails only on a frame that
// cannot be encoded, such as one with a string that is not UTF-8.
func (f Format) Append(dst []byte, m *Frame) ([]byte, error) {
	if f == JSON {
		out, err := protojson.MarshalOptions{UseProtoNames: true}.MarshalAppend(dst, m)
		if err != nil {
			return dst, fmt.Errorf("wire: encode frame as JSON: %w", err)
		}
		return out, nil
	}
	start, n := len(dst), m.SizeVT()
	dst = grow(dst, n)
	if _, err := m.MarshalToSizedBufferVT(dst[start:]); err != nil {
		return dst[:start], fmt.Errorf("wire: encode frame: %w", err)
	}
	return dst, nil
}

// Encode returns the encoded frame in a slice of its own.
func (f Format) Encode(m *Frame) ([]byte, error) { return f.Append(nil, m) }

// Decode reads one frame and keeps no reference to p. In JSON, fields that are
// not known are an error; in protobuf they are skipped, as the protocol's rule
// for new fields demands. A frame of an unknown kind decodes to one without a
// kind, which Validate refuses.
func (f Format) Decode(p []byte) (*Frame, error) {
	m := new(Frame)
	if f == JSON {
		if err := (protojson.UnmarshalOptions{}).Unmarshal(p, m); err != nil {
			return nil, fmt.Errorf("wire: decode JSON frame: %w", err)
		}
		return m, nil
	}
	if err := m.UnmarshalVT(p); err != nil {
		return nil, fmt.Errorf("wire: decode frame: %w", err)
	}
	return m, nil
}

// Ack returns what a frame acknowledges that is an Ack and nothing else, and
// whether it is one that can be read here; Decode reads the others. Most of what
// clients send are Acks: this takes no memory.
func (f Format) Ack(p []byte) (upto uint64, ok bool) {
	const frameAck, ackUpto = 3<<3 | 2, 1 << 3 // field numbers and wire types of chat.proto
	if f != Proto || len(p) < 4 || p[0] != frameAck || int(p[1]) != len(p)-2 || p[2] != ackUpto {
		return 0, false
	}
	upto, n := binary.Uvarint(p[3:])
	return upto, n == len(p)-3
}

// grow returns dst longer by n bytes of any content.
func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst[:len(dst)+n]
	}
	if dst == nil {
		return make([]byte, n)
	}
	return append(dst, make([]byte, n)...)
}
