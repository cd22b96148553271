package wire

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// FuzzToken: a token is accepted if this key has signed it, and nothing else is.
func FuzzToken(f *testing.F) {
	key := testKey()
	expires := time.Now().Add(24 * time.Hour)
	good, err := key.Sign(Claims{User: 7, Device: 2, Expires: expires})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{good, good + "A", good[:len(good)-1], "eyJhbGciOiJub25lIn0.e30.", "..", ""} {
		f.Add(s)
	}
	other := Key(append([]byte(nil), key...))
	other[0] ^= 1
	f.Fuzz(func(t *testing.T, token string) {
		claims, err := key.Verify(token)
		if err != nil {
			return
		}
		if _, err := other.Verify(token); err == nil {
			t.Fatalf("two keys have signed %q", token)
		}
		if again, err := key.Sign(claims); err != nil {
			t.Fatalf("%+v cannot be signed: %v", claims, err)
		} else if back, err := key.Verify(again); err != nil || back != claims {
			t.Fatalf("%+v signed again is %+v, %v", claims, back, err)
		}
	})
}

// FuzzMedia: ids, grants and signed URLs are what was signed, or refused.
func FuzzMedia(f *testing.F) {
	key, now := testKey(), time.Unix(1_800_000_000, 0)
	id := MediaID{1, 2, 3}
	grant := MediaGrant{Message: MessageID{9}, From: 1, Group: 7, Version: 3}
	u, err := url.Parse(MediaURL(key, id, 5, now.Add(time.Minute)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(id.String(), base64.RawURLEncoding.EncodeToString(SignMediaGrant(key, id, grant)), u.RawQuery)
	f.Add("../../etc/passwd", "", "signature=&user=1&expires=99999999999")
	f.Add("ABCDEF00000000000000000000000000", "====", "user=%zz")
	f.Fuzz(func(t *testing.T, name, header, query string) {
		at, err := ParseMediaID(name)
		if err == nil && at.String() != name {
			t.Fatalf("%q is the id %s", name, at)
		}
		b, err := MediaGrantOf(http.Header{MediaGrantHeader: {header}})
		if err == nil && b != nil {
			if g, err := VerifyMediaGrant(key, at, b); err == nil && string(SignMediaGrant(key, at, g)) != string(b) {
				t.Fatalf("grant %x is %+v, which is signed otherwise", b, g)
			}
		}
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		if user, err := VerifyMediaURL(key, at, q, now); err == nil {
			if user2, err := VerifyMediaURL(key, MediaID{0xff}, q, now); err == nil && at != (MediaID{0xff}) {
				t.Fatalf("%q opens two media, for %d and %d", query, user, user2)
			}
		}
	})
}

// FuzzAdmin: the messages of the provisioning API.
func FuzzAdmin(f *testing.F) {
	b, err := (&Provision{Users: []*ProvisionUser{{User: 1, Devices: []*ProvisionDevice{{Device: 2, PushToken: "x"}}}}, Groups: []*ProvisionGroup{{Group: 3, Name: "g", Members: []uint64{1}}}}).MarshalVT()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range []interface {
			UnmarshalVT([]byte) error
			MarshalVT() ([]byte, error)
		}{&Provision{}, &ProvisionResult{}, &MembershipChange{}, &MembershipResult{}} {
			if m.UnmarshalVT(data) != nil {
				continue
			}
			b, err := m.MarshalVT()
			if err == nil {
				err = m.UnmarshalVT(b)
			}
			if err != nil {
				t.Fatalf("%T: read, and cannot be written and read again: %v", m, err)
			}
		}
	})
}
