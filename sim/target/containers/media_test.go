package containers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"throng/sim/client"
	"throng/system/wire"
)

// mediaTravels: an object goes up over an interruption at one instance, and its
// addressee, nobody else, fetches it at the other; it is in S3 and still there
// after that and the instances have been killed.
func mediaTravels(t *testing.T, d *Deployment, base uint64) {
	if at := d.Config().MediaStore.Blobs; !strings.HasPrefix(at, "s3://") || d.Versions()[VersionS3] == "" {
		t.Fatalf("blobs are at %s, versions %v: make images", at, d.Versions())
	}
	ctx := within(t, 2*time.Minute)
	if err := provision(ctx, d, base); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	m := &client.Media{HTTP: &http.Client{Transport: tr}, Bases: []string{
		"http://" + d.Address("media", 0, portMain), "http://" + d.Address("media", 1, portMain)}}
	token := func(user uint64) string {
		s, err := d.Token(base+user, 0)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	content := make([]byte, 5<<20+11) // more than one part
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(content)
	id, resumed, err := m.Upload(ctx, 0, token(1), client.MediaObject{Kind: "image", Size: int64(len(content)), SHA256: sha256.Sum256(content),
		Content: bytes.NewReader(content), Interrupt: true})
	if err != nil || resumed == 0 {
		t.Fatalf("upload, interrupted %d times: %v", resumed, err)
	}
	grant, err := sendMedia(ctx, d, base, id)
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(user uint64) ([]byte, error) {
		var got bytes.Buffer
		err := m.Fetch(ctx, 1, token(user), id, grant, &got, func() {})
		return got.Bytes(), err
	}
	if _, err := fetch(3); !errors.Is(err, client.ErrMediaRefused) {
		t.Errorf("who is no addressee gets %v", err)
	}
	for _, killed := range []string{"", RoleS3, "media"} {
		if killed != "" {
			if err := d.Kill(killed, 0); err != nil {
				t.Fatal(err)
			}
			if err := d.Restart(killed, 0); err != nil {
				t.Fatal(err)
			}
			if err := d.WaitReady(ctx, killed, 0); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := fetch(2); err != nil || !bytes.Equal(got, content) {
			t.Errorf("after a kill of %q: %d bytes, %v", killed, len(got), err)
		}
	}
}

// sendMedia sends a message with media from the first user to the second, and
// returns the grant that arrives.
func sendMedia(ctx context.Context, d *Deployment, base uint64, id wire.MediaID) ([]byte, error) {
	a, fromA, err := login(ctx, d, 0, base+1)
	if err != nil {
		return nil, err
	}
	defer a.Abort()
	b, fromB, err := login(ctx, d, 0, base+2)
	if err != nil {
		return nil, err
	}
	defer b.Abort()
	if err := say(ctx, a, fromA, &wire.Send{ClientMsgId: 1, User: base + 2, Kind: wire.Kind_KIND_IMAGE, Body: []byte("look"), Media: id[:]}); err != nil {
		return nil, err
	}
	f, err := fromB.await(ctx, "the picture", func(f *wire.Frame) bool { return bytes.Equal(f.GetDeliver().GetMedia(), id[:]) })
	if err != nil {
		return nil, err
	}
	return f.GetDeliver().GetMediaGrant(), nil
}
