package wire

import "fmt"

// FrameError says why a client frame is refused.
type FrameError struct {
	Code        Code   // what to answer
	ClientMsgID uint64 // of the Send refused, else 0
	Detail      string
	// Fatal: the peer does not keep to the protocol, close with CloseBadFrame.
	// Otherwise the frame is answered with an Error and the connection goes on.
	Fatal bool
}

func (e *FrameError) Error() string {
	return fmt.Sprintf("wire: frame refused: %s: %s", e.Code, e.Detail)
}

// Validate checks one frame from a client by itself: its kind is one that
// clients send, its fields are in range and agree. What depends on the
// connection (Sync comes first, Ack within what was delivered) is for the
// gateway. The error is always a *FrameError.
func Validate(f *Frame) error {
	switch k := f.GetKind().(type) {
	case *Frame_Sync, *Frame_Ack, *Frame_Presence, *Frame_Ping, *Frame_Privacy:
		return nil
	case *Frame_Send:
		return validateSend(k.Send)
	case *Frame_Read:
		if k.Read.GetFrom() == 0 || k.Read.GetUptoSeq() == 0 {
			return fatal("read without from or upto_seq")
		}
	case *Frame_Typing:
		if (k.Typing.GetUser() == 0) == (k.Typing.GetGroup() == 0) {
			return fatal("typing needs one of user and group")
		}
	case *Frame_View:
		if k.View.GetUser() != 0 && k.View.GetGroup() != 0 {
			return fatal("view of both user and group")
		}
	case *Frame_GroupRequest:
		// What is asked for is for the group service to judge; it answers.
		if k.GroupRequest.GetRequestId() == 0 {
			return fatal("group request without request_id")
		}
	case *Frame_ReceiptsRequest:
		if k.ReceiptsRequest.GetRequestId() == 0 || k.ReceiptsRequest.GetGroup() == 0 {
			return fatal("receipts request without request_id or group")
		}
	case nil:
		return fatal("frame without a kind this version knows")
	default:
		return fatal("frame that only servers send")
	}
	return nil
}

func validateSend(s *Send) error {
	refuse := func(code Code, detail string) error {
		return &FrameError{Code: code, ClientMsgID: s.GetClientMsgId(), Detail: detail}
	}
	switch {
	case s.GetClientMsgId() == 0: // an Error could not say what it answers
		return fatal("send without client_msg_id")
	case len(s.GetBody()) > MaxBodyBytes:
		return refuse(Code_CODE_TOO_LARGE, "body is too large")
	case (s.GetUser() == 0) == (s.GetGroup() == 0):
		return refuse(Code_CODE_INVALID, "send needs one of user and group")
	case s.GetSeq() == 0:
		return refuse(Code_CODE_INVALID, "seq starts at 1")
	case len(s.GetChain()) != 0 && len(s.GetChain()) != ChainBytes:
		return refuse(Code_CODE_INVALID, "chain has the wrong length")
	case Kind_name[int32(s.GetKind())] == "" || s.GetKind() == Kind_KIND_SYSTEM:
		return refuse(Code_CODE_INVALID, "unknown kind")
	case needsAbout(s.GetKind()) && len(s.GetAbout()) != len(MessageID{}):
		return refuse(Code_CODE_INVALID, "this kind needs the message_id it is about")
	case !needsAbout(s.GetKind()) && len(s.GetAbout()) != 0:
		return refuse(Code_CODE_INVALID, "this kind is not about another message")
	case len(s.GetMedia()) != 0 && (len(s.GetMedia()) != len(MediaID{}) || !IsMedia(s.GetKind())):
		return refuse(Code_CODE_INVALID, "media is the id of one, with a kind that has media")
	}
	return nil
}

// needsAbout reports whether a message of kind k names another one.
func needsAbout(k Kind) bool {
	switch k {
	case Kind_KIND_CALL_ANSWER, Kind_KIND_CALL_HANGUP, Kind_KIND_REACTION, Kind_KIND_EDIT, Kind_KIND_DELETE:
		return true
	}
	return false
}

// IsMedia reports whether a message of kind k may refer to media.
func IsMedia(k Kind) bool { return k >= Kind_KIND_IMAGE && k <= Kind_KIND_OTHER }

func fatal(detail string) error {
	return &FrameError{Code: Code_CODE_INVALID, Detail: detail, Fatal: true}
}
