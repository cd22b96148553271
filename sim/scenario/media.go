package scenario

import (
	"fmt"
	"io"
)

// Media is what simulated users do with media: of the messages that have a kind
// with media, which ones refer to an object that is uploaded and fetched. Share
// 0: none, the messages have a body alone, and there is no media service.
type Media struct {
	Share float64
	// ByteScale multiplies the profile's sizes: a machine that carries a slice of
	// the messages does not carry that slice's bytes.
	ByteScale float64
	// InterruptShare of the uploads lose their connection half-way and go on.
	InterruptShare float64
	Instances      int // processes of the media role, where Share is not 0
	// FetchedGraceS is how long the service keeps what all addressees have fetched.
	FetchedGraceS float64
	// Gates on the steady phase, ms; 0: no such gate.
	P99UploadMs, P99FirstByteMs, P99FetchMs float64
}

func (m *Media) fields() []field {
	return []field{
		{path: "media.share", kind: kindNumber, max: 1, def: "0", sparse: true, doc: "share of image, voice, video and other messages whose object is uploaded and fetched; 0: none", to: &m.Share},
		{path: "media.byte_scale", kind: kindNumber, min: 1e-6, max: 1, def: "1", sparse: true, doc: "bytes of an object over those of the profile", to: &m.ByteScale},
		{path: "media.interrupt_share", kind: kindNumber, max: 1, def: "0", sparse: true, doc: "share of uploads that lose their connection half-way and go on", to: &m.InterruptShare},
		{path: "media.instances", kind: kindInt, min: 1, max: 64, def: "1", sparse: true, doc: "processes of the media role", to: &m.Instances},
		{path: "media.fetched_grace", kind: kindDuration, max: 30 * 86400, def: "24h", sparse: true, doc: "how long the service keeps what all addressees have fetched", to: &m.FetchedGraceS},
		{path: "media.p99_upload_ms", kind: kindNumber, max: 600_000, def: "0", sparse: true, doc: "gate: p99 from the intended time until an object is uploaded, ms; 0: no gate", to: &m.P99UploadMs},
		{path: "media.p99_first_byte_ms", kind: kindNumber, max: 600_000, def: "0", sparse: true, doc: "gate: p99 from the delivery until the first byte, ms; 0: no gate", to: &m.P99FirstByteMs},
		{path: "media.p99_fetch_ms", kind: kindNumber, max: 600_000, def: "0", sparse: true, doc: "gate: p99 from the delivery until all is fetched, ms; 0: no gate", to: &m.P99FetchMs},
	}
}

// Medias is how many media instances the scenario needs.
func (s *Spec) Medias() int {
	if s.Media.Share == 0 {
		return 0
	}
	return s.Media.Instances
}

// MediaBytes are the mean sizes of objects by kind, exponentially distributed
// (mim-stm, after compression; that of other is assumed). Text has none.
func MediaBytes() [5]float64 { return [5]float64{0, 213_000, 89_000, 6_290_000, 500_000} }

// MaxMediaBytes bounds an object: the service takes no larger video.
const MaxMediaBytes = 64 << 20

// MediaBytesPerSend is the mean of objects' bytes for a send, at full size.
func MediaBytesPerSend() float64 {
	sum := 0.0
	for kind, share := range KindShares() {
		sum += share * MediaBytes()[kind]
	}
	return sum
}

// Note says what the byte scale means, "" where there are no media.
func (m Media) Note() string {
	if m.Share == 0 {
		return ""
	}
	return fmt.Sprintf("Media: %s %% of the messages with media have an object; objects have %s of the profile's bytes (declared: 2 cores do not carry the bytes of this slice), so bytes and bandwidth of media are to be multiplied by %s.",
		num(100*m.Share), num(m.ByteScale), num(1/m.ByteScale))
}

// describe prints what is uploaded.
func (m Media) describe(w io.Writer, r Rates) {
	if m.Share == 0 {
		return
	}
	rate := r.SendsPerS * m.Share * MediaBytesPerSend() * m.ByteScale
	fmt.Fprintf(w, "  media: %s bytes/s up, %s of the profile's bytes\n", human(rate), num(m.ByteScale))
}
