package client

import (
	"encoding/binary"
	"errors"
)

// maxMessage bounds what a server may send at once: far above any frame of the
// protocol.
const maxMessage = 16 << 20

var errTooLong = errors.New("client: the server announces a message that is too long")

// message returns the length of the whole message that data begins with: a
// control frame, or all frames of a data message with the control frames among
// them. 0: it has not all come.
func message(data []byte) (n int, control bool, err error) {
	for {
		length, final, isControl, err := frame(data[n:])
		if err != nil || length == 0 {
			return 0, false, err
		}
		if n += length; n > maxMessage {
			return 0, false, errTooLong
		}
		switch {
		case isControl && n == length:
			return n, true, nil
		case final && !isControl:
			return n, false, nil
		}
	}
}

// frame returns the length of the WebSocket frame that data begins with, header
// included; 0: it has not all come. RFC 6455, section 5.2; a server does not mask.
func frame(data []byte) (n int, final, control bool, err error) {
	if len(data) < 2 {
		return 0, false, false, nil
	}
	header, length := 2, uint64(data[1]&0x7f)
	switch length {
	case 126:
		if header = 4; len(data) >= header {
			length = uint64(binary.BigEndian.Uint16(data[2:]))
		}
	case 127:
		if header = 10; len(data) >= header {
			length = binary.BigEndian.Uint64(data[2:])
		}
	}
	if data[1]&0x80 != 0 {
		header += 4 // the layer above refuses it
	}
	if length > maxMessage {
		return 0, false, false, errTooLong
	}
	if len(data) < header+int(length) {
		return 0, false, false, nil
	}
	return header + int(length), data[0]&0x80 != 0, data[0]&0x08 != 0, nil
}
