package wire

import (
	"encoding/binary"
	"fmt"
)

// WebSocket opcodes (RFC 6455, 5.2).
const (
	OpContinuation byte = 0
	OpText         byte = 1
	OpBinary       byte = 2
	OpClose        byte = 8
	OpPing         byte = 9
	OpPong         byte = 10
)

// MaxControlPayload bounds the payload of a control message.
const MaxControlPayload = 125

const (
	finBit  = 0x80
	maskBit = 0x80
)

// ServerHeaderLen returns the length of the WebSocket header of an unmasked
// message with n bytes of payload: 2, 4 or 10.
func ServerHeaderLen(n int) int {
	switch {
	case n <= 125:
		return 2
	case n <= 0xffff:
		return 4
	}
	return 10
}

// AppendServerHeader appends the header of an unmasked, unfragmented message
// with n bytes of payload.
func AppendServerHeader(dst []byte, opcode byte, n int) []byte {
	return appendHeader(dst, opcode, n, 0)
}

// AppendServerMessage appends a whole unmasked WebSocket message. Messages from
// a server carry no mask and no state of the connection (no compression is
// negotiated), so the bytes can be written to any number of connections.
func AppendServerMessage(dst []byte, opcode byte, payload []byte) []byte {
	return append(AppendServerHeader(dst, opcode, len(payload)), payload...)
}

// ServerMessage returns the frame as a whole WebSocket message in one
// allocation of the exact size.
func (f Format) ServerMessage(m *Frame) ([]byte, error) {
	if f == JSON {
		p, err := f.Encode(m)
		if err != nil {
			return nil, err
		}
		return AppendServerMessage(make([]byte, 0, ServerHeaderLen(len(p))+len(p)), OpText, p), nil
	}
	n := m.SizeVT()
	h := ServerHeaderLen(n)
	dst := AppendServerHeader(make([]byte, 0, h+n), OpBinary, n)[:h+n]
	if _, err := m.MarshalToSizedBufferVT(dst[h:]); err != nil {
		return nil, fmt.Errorf("wire: encode frame: %w", err)
	}
	return dst, nil
}

// AppendCloseMessage appends a server's close message. reason is cut at 123 bytes.
func AppendCloseMessage(dst []byte, code CloseCode, reason string) []byte {
	if len(reason) > MaxControlPayload-2 {
		reason = reason[:MaxControlPayload-2]
	}
	dst = AppendServerHeader(dst, OpClose, 2+len(reason))
	dst = binary.BigEndian.AppendUint16(dst, uint16(code))
	return append(dst, reason...)
}

// AppendClientMessage appends a whole masked WebSocket message, as a client
// must send it. The mask should be random: it protects intermediaries from
// payloads that were chosen to look like something else.
func AppendClientMessage(dst []byte, opcode byte, payload []byte, mask [4]byte) []byte {
	dst = appendHeader(dst, opcode, len(payload), maskBit)
	dst = append(dst, mask[:]...)
	start := len(dst)
	dst = append(dst, payload...)
	Mask(dst[start:], mask)
	return dst
}

func appendHeader(dst []byte, opcode byte, n int, mask byte) []byte {
	switch {
	case n <= 125:
		return append(dst, finBit|opcode, mask|byte(n))
	case n <= 0xffff:
		return append(dst, finBit|opcode, mask|126, byte(n>>8), byte(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, finBit|opcode, mask|127), uint64(n))
}

// Mask masks or unmasks b in place; b starts at the start of a payload.
func Mask(b []byte, mask [4]byte) {
	m := uint64(binary.LittleEndian.Uint32(mask[:]))
	m |= m << 32
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^m)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= mask[i&3]
	}
}

// Header is the header of one WebSocket frame, as read.
type Header struct {
	Fin    bool
	Opcode byte
	Masked bool
	Mask   [4]byte
	Len    int // of the payload
}

// ErrFrame is what ParseHeader wraps: the peer does not speak RFC 6455.
type ErrFrame string

func (e ErrFrame) Error() string { return "wire: websocket frame: " + string(e) }

// ParseHeader reads the header at the start of b and returns it with its
// length; the length is 0 when b does not hold all of it yet. It refuses
// reserved bits and opcodes, lengths not in their shortest form, control frames that
// are fragmented or too long, with an ErrFrame. The bound on Len is the caller's.
func ParseHeader(b []byte) (Header, int, error) {
	if len(b) < 2 {
		return Header{}, 0, nil
	}
	h := Header{Fin: b[0]&finBit != 0, Opcode: b[0] & 0x0f, Masked: b[1]&maskBit != 0, Len: int(b[1] & 0x7f)}
	if b[0]&0x70 != 0 {
		return Header{}, 0, ErrFrame("reserved bits set")
	}
	switch h.Opcode {
	case OpContinuation, OpText, OpBinary:
	case OpClose, OpPing, OpPong:
		if !h.Fin || h.Len > MaxControlPayload {
			return Header{}, 0, ErrFrame("fragmented or long control frame")
		}
	default:
		return Header{}, 0, ErrFrame("reserved opcode")
	}
	n := 2
	switch h.Len {
	case 126:
		if len(b) < 4 {
			return Header{}, 0, nil
		}
		h.Len, n = int(binary.BigEndian.Uint16(b[2:])), 4
		if h.Len <= 125 {
			return Header{}, 0, ErrFrame("length not in shortest form")
		}
	case 127:
		if len(b) < 10 {
			return Header{}, 0, nil
		}
		l := binary.BigEndian.Uint64(b[2:])
		if l <= 0xffff || l>>63 != 0 {
			return Header{}, 0, ErrFrame("length not in shortest form")
		}
		h.Len, n = int(l), 10
	}
	if h.Masked {
		if len(b) < n+4 {
			return Header{}, 0, nil
		}
		h.Mask = [4]byte(b[n:])
		n += 4
	}
	return h, n, nil
}
