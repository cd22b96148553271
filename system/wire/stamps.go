package wire

import "fmt"

// WithStamps returns a copy of an encoded Frame{Deliver} that has s beside the
// stamps it has already, without taking it apart: what is appended is one more
// of Frame.stamps. (A second occurrence of deliver would have to be merged with
// the first one, by the book, but there are libraries that replace it.)
func WithStamps(frame []byte, s *Stamps) []byte {
	f := Frame{Stamps: []*Stamps{s}}
	n := f.SizeVT()
	b := make([]byte, len(frame)+n)
	copy(b, frame)
	if _, err := f.MarshalToSizedBufferVT(b[len(frame):]); err != nil {
		panic(fmt.Sprintf("wire: encode stamps: %v", err)) // numbers alone can be encoded
	}
	return b
}

// CollectStamps moves what WithStamps added to the stamps of the Deliver.
func (f *Frame) CollectStamps() {
	d := f.GetDeliver()
	if d == nil || len(f.Stamps) == 0 {
		return
	}
	if d.Stamps == nil {
		d.Stamps = &Stamps{}
	}
	for _, s := range f.Stamps {
		d.Stamps.GatewayInUs = max(d.Stamps.GatewayInUs, s.GatewayInUs)
		d.Stamps.MessageInUs = max(d.Stamps.MessageInUs, s.MessageInUs)
		d.Stamps.LoggedUs = max(d.Stamps.LoggedUs, s.LoggedUs)
		d.Stamps.FanoutInUs = max(d.Stamps.FanoutInUs, s.FanoutInUs)
		d.Stamps.InboxInUs = max(d.Stamps.InboxInUs, s.InboxInUs)
		d.Stamps.InboxOutUs = max(d.Stamps.InboxOutUs, s.InboxOutUs)
		d.Stamps.GatewayOutUs = max(d.Stamps.GatewayOutUs, s.GatewayOutUs)
	}
	f.Stamps = nil
}
