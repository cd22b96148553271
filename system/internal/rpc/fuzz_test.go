package rpc

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// FuzzPayload gives the decoder of each payload between roles any bytes. It must not
// panic, and what it accepts must be what protobuf's own decoder reads, and must
// survive being encoded again.
func FuzzPayload(f *testing.F) {
	all := File_system_internal_rpc_rpc_proto.Messages()
	f.Add(uint8(0), []byte{})
	for i := range all.Len() {
		m := payload(f, all.Get(i))
		seed(m.ProtoReflect(), 3)
		b, err := m.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
		f.Add(uint8(i), b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		md := all.Get(int(which) % all.Len())
		m := payload(t, md)
		if m.UnmarshalVT(data) != nil {
			return
		}
		b, err := m.MarshalVT()
		if err != nil {
			t.Fatalf("%s: encode again: %v", md.Name(), err)
		}
		// Strings that are not UTF-8 are refused by protobuf's own decoder alone, and
		// fields that nobody knows are kept as they came, overlong or not.
		known := proto.UnmarshalOptions{DiscardUnknown: true}
		if want := payload(t, md); known.Unmarshal(data, want) == nil {
			if got := payload(t, md); known.Unmarshal(b, got) != nil || !proto.Equal(got, want) {
				t.Errorf("%s: read as %v, want %v", md.Name(), got, want)
			}
		}
		again := payload(t, md)
		if err := again.UnmarshalVT(b); err != nil {
			t.Errorf("%s: read again: %v", md.Name(), err)
		}
	})
}

// generated is what a payload can do by its generated code.
type generated interface {
	proto.Message
	vtMessage
	MarshalVT() ([]byte, error)
}

func payload(t testing.TB, md protoreflect.MessageDescriptor) generated {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		t.Fatal(err)
	}
	m, ok := mt.New().Interface().(generated)
	if !ok {
		t.Fatalf("%s has no generated code", md.FullName())
	}
	return m
}

// seed sets every field of a message that is not a list to something, as deep as
// depth says.
func seed(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case fd.IsMap():
		case fd.IsList():
			l := m.Mutable(fd).List()
			if fd.Message() == nil {
				l.Append(scalar(fd))
			} else if depth > 0 {
				seed(l.AppendMutable().Message(), depth-1)
			}
		case fd.Message() != nil:
			if depth > 0 {
				seed(m.Mutable(fd).Message(), depth-1)
			}
		default:
			m.Set(fd, scalar(fd))
		}
	}
}

func scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("text")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{1, 2, 3})
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(300)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(-1)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(1 << 63)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(-1)
	}
	return fd.Default()
}
