package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"throng/sim/client"
	"throng/sim/target"
	"throng/system/wire"
)

// inbox collects what a connection brings.
type inbox struct {
	mu     sync.Mutex
	frames []*wire.Frame
	closed error
	more   chan struct{}
}

func (b *inbox) Frame(_ *client.Conn, f *wire.Frame) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.frames = append(b.frames, f)
	b.signal()
}

func (b *inbox) Closed(_ *client.Conn, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = errors.Join(errors.New("the connection ended"), err)
	b.signal()
}

func (b *inbox) signal() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// await returns the first frame, not returned before, that match accepts.
func (b *inbox) await(ctx context.Context, what string, match func(*wire.Frame) bool) (*wire.Frame, error) {
	for {
		b.mu.Lock()
		for i, f := range b.frames {
			if match(f) {
				b.frames = slices.Delete(b.frames, i, i+1)
				b.mu.Unlock()
				return f, nil
			}
		}
		closed, seen := b.closed, fmt.Sprint(b.frames)
		b.mu.Unlock()
		if closed != nil {
			return nil, fmt.Errorf("waiting for %s: %w; got %s", what, closed, seen)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s: %w; got %s", what, ctx.Err(), seen)
		case <-b.more:
		}
	}
}

// login connects a user's phone and waits until it is current. It tries again
// until ctx is done: after a kill a gateway takes connections before its inbox
// does.
func login(ctx context.Context, tgt target.Target, gateway int, user uint64) (*client.Conn, *inbox, error) {
	for {
		c, b, err := tryLogin(ctx, tgt, gateway, user)
		if err == nil {
			return c, b, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func tryLogin(ctx context.Context, tgt target.Target, gateway int, user uint64) (*client.Conn, *inbox, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	token, err := tgt.Token(user, 0)
	if err != nil {
		return nil, nil, err
	}
	var d client.Dialer
	b := &inbox{more: make(chan struct{}, 1)}
	c, err := d.Dial(ctx, tgt.Gateways()[gateway], token, b)
	if err != nil {
		return nil, nil, err
	}
	c.Start()
	err = c.Write(&wire.Frame{Kind: &wire.Frame_Sync{Sync: &wire.Sync{}}})
	if err == nil {
		_, err = b.await(ctx, "Current", func(f *wire.Frame) bool { return f.GetCurrent() != nil })
	}
	if err != nil {
		c.Abort()
		return nil, nil, err
	}
	return c, b, nil
}

// say sends a message as its conversation's first and waits for Sent.
func say(ctx context.Context, c *client.Conn, b *inbox, s *wire.Send) error {
	s.Seq = 1
	for {
		if err := c.Write(&wire.Frame{Kind: &wire.Frame_Send{Send: s}}); err != nil {
			return err
		}
		f, err := b.await(ctx, "answer", func(f *wire.Frame) bool {
			return f.GetSent().GetClientMsgId() == s.ClientMsgId || f.GetError().GetClientMsgId() == s.ClientMsgId
		})
		if err != nil {
			return err
		}
		if f.GetError() == nil {
			return nil
		}
		select { // refused for now: a part was killed just before
		case <-ctx.Done():
			return fmt.Errorf("refused: %v", f)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// exchange provisions and lets talk. base keeps the users of several exchanges
// apart.
func exchange(ctx context.Context, tgt target.Target, base uint64) error {
	if err := provision(ctx, tgt, base); err != nil {
		return err
	}
	return talk(ctx, tgt, base)
}

// provision makes four users and a group of three.
func provision(ctx context.Context, tgt target.Target, base uint64) error {
	group := base + 9
	var users []*wire.ProvisionUser
	for i := range uint64(4) {
		users = append(users, &wire.ProvisionUser{User: base + i + 1, Devices: []*wire.ProvisionDevice{{PushToken: fmt.Sprintf("%d/0", base+i+1)}}})
	}
	return provisionParts(ctx, tgt, &wire.Provision{Users: users},
		&wire.Provision{Groups: []*wire.ProvisionGroup{{Group: group, Name: "nine", Members: []uint64{base + 1, base + 2, base + 3}}}})
}

func provisionParts(ctx context.Context, tgt target.Target, parts ...*wire.Provision) error {
	_, err := tgt.Provision(ctx, func() (*wire.Provision, error) {
		if len(parts) == 0 {
			return nil, io.EOF
		}
		p := parts[0]
		parts = parts[1:]
		return p, nil
	})
	return err
}

// talk lets the first user talk to the second directly and in the group, and to
// the third's push.
func talk(ctx context.Context, tgt target.Target, base uint64) error {
	group := base + 9
	pushCtx, stopPushes := context.WithCancel(ctx)
	pushes := make(chan target.Push, 64)
	var feed sync.WaitGroup
	feed.Go(func() {
		_ = tgt.Pushes(pushCtx, func(p target.Push) { // its failure shows as a missing push
			select {
			case pushes <- p:
			default:
			}
		})
	})
	defer feed.Wait()
	defer stopPushes()

	a, fromA, err := login(ctx, tgt, 0, base+1)
	if err != nil {
		return fmt.Errorf("login of the first: %w", err)
	}
	defer a.Abort()
	b, fromB, err := login(ctx, tgt, len(tgt.Gateways())-1, base+2)
	if err != nil {
		return fmt.Errorf("login of the second: %w", err)
	}
	defer b.Abort()
	for i, s := range []*wire.Send{{User: base + 2, Body: []byte("direct")}, {Group: group, Body: []byte("to all")}} {
		s.ClientMsgId = uint64(i + 1)
		if err := say(ctx, a, fromA, s); err != nil {
			return fmt.Errorf("%s: %w", s.Body, err)
		}
		if _, err := fromB.await(ctx, string(s.Body), func(f *wire.Frame) bool { return string(f.GetDeliver().GetBody()) == string(s.Body) }); err != nil {
			return err
		}
	}
	for {
		select {
		case p := <-pushes:
			if p.User == base+3 && p.MessageID == wire.IDOf(base+1, 0, 2) {
				return nil
			}
		case <-ctx.Done():
			return errors.New("no push for the member who is offline")
		}
	}
}
