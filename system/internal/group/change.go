package group

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

// changeTimeout bounds how long a change waits for its place in the log.
const changeTimeout = 15 * time.Second

var errInvalid = errors.New("group: invalid request")

// Change implements rpc.GroupServer. It answers when the change is in the
// group's log. Repeating it is harmless: what is so already is no change, and
// then the answer is the position of the current version. After an error the
// change may have been made.
func (s *Service) Change(ctx context.Context, req *wire.MembershipChange) (*wire.MembershipResult, error) {
	res, err := s.change(ctx, req)
	if err != nil {
		return nil, statusOf(err)
	}
	return res, nil
}

func (s *Service) change(ctx context.Context, req *wire.MembershipChange) (*wire.MembershipResult, error) {
	if err := validateChange(req); err != nil {
		return nil, err
	}
	if owner := s.owner(req.Group); owner != s.cfg.Instance {
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		defer cancel()
		return s.peers[owner].Change(ctx, req)
	}
	if err := s.exist(ctx, req.Add); err != nil {
		return nil, err
	}
	_, p, err := s.edit(ctx, req.Group, Request{}, func(before *State) (*wire.GroupChange, error) {
		return decideMembers(before, req.Add, req.Remove)
	})
	if err != nil {
		return nil, err
	}
	return &wire.MembershipResult{Version: p.Version, Offset: p.Offset}, nil
}

// edit makes the next version of a group this instance looks after, or none
// where decide says so, and waits until the current version is in the log. It
// returns that version and its position. Errors of decide come as they are.
func (s *Service) edit(ctx context.Context, id uint64, by Request, decide func(*State) (*wire.GroupChange, error)) (*State, Position, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	// Listen before the change can be in the log.
	w := s.relay.listen(id)
	defer s.relay.leave(w)
	var after *State
	var made change
	began, inLog := time.Now(), false
	changed, asked := false, false
	defer func() {
		if changed {
			s.m.change.Done(time.Since(began), !inLog)
		}
	}()
	s.heads.begin(id)
	err := s.cfg.Store.Update(ctx, id, by, func(before *State) (*Edit, error) {
		s.relay.first(made) // of an attempt that was rolled back
		after, changed, asked = before, false, false
		c, err := decide(before)
		if err != nil || c == nil {
			return nil, err
		}
		after, changed, asked = complete(before, c), true, true
		made = change{id, c.Version}
		s.relay.made(made)
		record, err := recordOf(id, c)
		return &Edit{Change: c, Record: record}, err
	})
	s.heads.end(id, err == nil || !asked)
	s.loads.Forget(currentKey(id)) // who asks from now on must not join an older load
	if err != nil {
		s.relay.first(made) // it may be stored all the same: nothing is known of it
		return nil, Position{}, fmt.Errorf("group %d: change: %w", id, err)
	}
	version := after.Version
	if changed {
		s.m.changes.Inc()
		s.shared.raise(ctx, id, version)
		s.relay.wakeUp()
	} else {
		v, err := s.cfg.Store.Versions(ctx, id, math.MaxInt64)
		if err != nil {
			return nil, Position{}, fmt.Errorf("group %d: %w", id, err)
		}
		version = v.Current
		if v.Known {
			return after, Position{Group: id, Version: version, Offset: v.CurrentOffset}, nil
		}
	}
	p, err := w.await(ctx, version)
	if err != nil {
		return nil, Position{}, fmt.Errorf("group %d: version %d is stored and will be in the log later: %w", id, version, err)
	}
	inLog = true
	return after, p, nil
}

// recordOf encodes a change for the group's log.
func recordOf(id uint64, c *wire.GroupChange) ([]byte, error) {
	return (&rpc.GroupRecord{Kind: &rpc.GroupRecord_Membership{Membership: &rpc.Membership{
		Group: id, Version: c.Version, Add: c.Add, Remove: c.Remove, Change: c, AtMs: time.Now().UnixMilli(),
	}}}).MarshalVT()
}

func validateChange(req *wire.MembershipChange) error {
	switch {
	case req.GetGroup() == 0:
		return fmt.Errorf("%w: no group", errInvalid)
	case len(req.Add) > MaxMembers || len(req.Remove) > MaxMembers:
		return fmt.Errorf("%w: more than %d users", errInvalid, MaxMembers)
	case len(req.Add)+len(req.Remove) == 0:
		return fmt.Errorf("%w: nothing to change", errInvalid)
	}
	return distinct(req.Add, req.Remove)
}

// distinct returns an errInvalid if a user is 0 or named twice.
func distinct(lists ...[]uint64) error {
	seen := map[uint64]struct{}{}
	for _, users := range lists {
		for _, u := range users {
			if _, twice := seen[u]; twice || u == 0 {
				return fmt.Errorf("%w: user %d is 0 or named twice", errInvalid, u)
			}
			seen[u] = struct{}{}
		}
	}
	return nil
}
