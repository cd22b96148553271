package wire

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestKeys: whatever a retired key signed holds under any place in Keys, and
// nothing holds once it is gone.
func TestKeys(t *testing.T) {
	old, now := testKey(), time.Now()
	id, conversation := MediaID{1}, Conversation{User: 9}
	token, err := old.Sign(Claims{User: 1, Expires: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	chain := Chain(old, 1, 2, conversation, 3)
	grant := SignMediaGrant(old, id, MediaGrant{From: 1, To: 9})
	u, err := url.Parse(MediaURL(old, id, 1, now.Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	other := func(letter string) Key { return Key(strings.Repeat(letter, MinKeyBytes)) }
	for _, c := range []struct {
		keys Keys
		want bool
	}{
		{Keys{old}, true}, {Keys{old, other("a")}, true}, {Keys{other("a"), old}, true}, {Keys{other("a"), other("b"), other("c"), old}, true},
		{nil, false}, {Keys{other("a")}, false}, {Keys{other("a"), other("b")}, false},
	} {
		_, tokenErr := c.keys.Verify(token)
		_, grantErr := c.keys.VerifyMediaGrant(id, grant)
		_, urlErr := c.keys.VerifyMediaURL(id, u.Query(), now)
		for what, ok := range map[string]bool{
			"token": tokenErr == nil, "grant": grantErr == nil, "URL": urlErr == nil,
			"chain": c.keys.VerifyChain(1, 2, conversation, 3, chain[:]),
		} {
			if ok != c.want {
				t.Errorf("the %s verifies under %d keys: %v, want %v", what, len(c.keys), ok, c.want)
			}
		}
	}
	text := old.String()
	if keys, err := ParseKeys(text, other("a").String()); err != nil || len(keys) != 2 {
		t.Errorf("two keys: %d, %v", len(keys), err)
	}
	if _, err := ParseKeys(text, text, text, text, text); err == nil {
		t.Errorf("%d keys were taken", MaxKeys+1)
	}
}
