package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"throng/system/wire"
)

// Bounds of provisioning.
const (
	tokenLife      = 24 * time.Hour
	provisionBytes = 1 << 20 // of one request; a message more can be on top
	adminTimeout   = 60 * time.Second
	adminTries     = 3
)

// Admin is what the operator of a deployment does to it over the network, for
// every kind of target. Methods can be called from several goroutines.
type Admin struct {
	HTTP *http.Client
	Key  wire.Key
	URL  string // of the provisioning API of a group instance, without the path
	// AdminToken authorises provisioning; empty: one is signed with Key.
	AdminToken string
}

// Token returns a token that is good for a day.
func (a *Admin) Token(user uint64, device uint32) (string, error) {
	return a.Key.Sign(wire.Claims{User: user, Device: device, Expires: time.Now().Add(tokenLife)})
}

// Token returns a token that is good for a day.
func (e *Embedded) Token(user uint64, device uint32) (string, error) {
	return e.operator().Token(user, device)
}

// Provision sends what next yields to the first group instance, about 1 MiB a
// request. A request that fails is repeated: provisioning twice is harmless.
func (e *Embedded) Provision(ctx context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	return e.operator().Provision(ctx, next)
}

// ChangeMembers returns when the change is in the group's log.
func (e *Embedded) ChangeMembers(ctx context.Context, change *wire.MembershipChange) (*wire.MembershipResult, error) {
	return e.operator().ChangeMembers(ctx, change)
}

func (e *Embedded) operator() *Admin {
	return &Admin{HTTP: e.http, Key: e.cfg.Key, URL: "http://" + e.sys.Groups[0].HTTP}
}

// Provision sends what next yields, about 1 MiB a request. A request that fails
// is repeated: provisioning twice is harmless.
func (a *Admin) Provision(ctx context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	total := &wire.ProvisionResult{}
	var body []byte
	for ended := false; !ended; {
		p, err := next()
		switch {
		case err == nil:
			data, err := p.MarshalVT()
			if err != nil {
				return nil, fmt.Errorf("target: provision: %w", err)
			}
			body = protowire.AppendBytes(body, data)
		case errors.Is(err, io.EOF):
			ended = true
		default:
			return nil, fmt.Errorf("target: provision: %w", err)
		}
		if len(body) == 0 || (len(body) < provisionBytes && !ended) {
			continue
		}
		res := &wire.ProvisionResult{}
		if err := a.admin(ctx, "/admin/v1/provision", body, res); err != nil {
			return nil, err
		}
		total.Users += res.Users
		total.Groups += res.Groups
		body = body[:0]
	}
	return total, nil
}

// ChangeMembers returns when the change is in the group's log.
func (a *Admin) ChangeMembers(ctx context.Context, change *wire.MembershipChange) (*wire.MembershipResult, error) {
	body, err := change.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("target: change members: %w", err)
	}
	res := &wire.MembershipResult{}
	if err := a.admin(ctx, "/admin/v1/members", body, res); err != nil {
		return nil, err
	}
	return res, nil
}

// admin posts body to the provisioning API until it is answered.
func (a *Admin) admin(ctx context.Context, path string, body []byte, into interface{ UnmarshalVT([]byte) error }) error {
	token, err := a.adminToken()
	if err != nil {
		return fmt.Errorf("target: admin token: %w", err)
	}
	url := a.URL + path
	for try := 1; ; try++ {
		answer, retry, err := a.post(ctx, url, token, body)
		if err == nil {
			if err := into.UnmarshalVT(answer); err != nil {
				return fmt.Errorf("target: answer of %s: %w", path, err)
			}
			return nil
		}
		if !retry || try == adminTries {
			return fmt.Errorf("target: %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("target: %s: %w", path, ctx.Err())
		case <-time.After(time.Duration(try) * 200 * time.Millisecond):
		}
	}
}

func (a *Admin) adminToken() (string, error) {
	if a.AdminToken != "" {
		return a.AdminToken, nil
	}
	return a.Key.Sign(wire.Claims{Admin: true, Expires: time.Now().Add(tokenLife)})
}

// post makes one request. retry says whether another can succeed.
func (a *Admin) post(ctx context.Context, url, token string, body []byte) (answer []byte, retry bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := a.HTTP.Do(req)
	if err != nil {
		return nil, true, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		return nil, true, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode >= 500, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	return answer, false, nil
}
