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

// changeTimeout bounds how long Change waits for its place in the log.
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
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if owner := s.owner(req.Group); owner != s.cfg.Instance {
		return s.peers[owner].Change(ctx, req)
	}
	// Listen before the change can be in the log.
	w := s.relay.listen(req.Group)
	defer s.relay.leave(w)
	var made change
	version, changed, err := s.cfg.Store.Change(ctx, req.Group, req.Add, req.Remove, MaxMembers,
		func(version uint64, add, remove []uint64) ([]byte, error) {
			made = change{req.Group, version}
			s.relay.made(made)
			return (&rpc.GroupRecord{Kind: &rpc.GroupRecord_Membership{Membership: &rpc.Membership{
				Group: req.Group, Version: version, Add: add, Remove: remove,
			}}}).MarshalVT()
		})
	if err != nil {
		s.relay.first(made) // it may be stored all the same: nothing is known of it
		return nil, fmt.Errorf("group %d: change: %w", req.Group, err)
	}
	if changed {
		s.m.changes.Inc()
		s.heads.changed(req.Group)
		s.loads.Forget(currentKey(req.Group)) // who asks from now on must not join an older load
		s.shared.raise(ctx, req.Group, version)
		s.relay.wakeUp()
	} else {
		v, err := s.cfg.Store.Versions(ctx, req.Group, math.MaxInt64)
		if err != nil {
			return nil, fmt.Errorf("group %d: %w", req.Group, err)
		}
		if v.Current >= version && v.Known {
			return &wire.MembershipResult{Version: v.Current, Offset: v.CurrentOffset}, nil
		}
	}
	p, err := w.await(ctx, version)
	if err != nil {
		return nil, fmt.Errorf("group %d: version %d is stored and will be in the log later: %w", req.Group, version, err)
	}
	return &wire.MembershipResult{Version: p.Version, Offset: p.Offset}, nil
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
	seen := make(map[uint64]struct{}, len(req.Add)+len(req.Remove))
	for _, users := range [][]uint64{req.Add, req.Remove} {
		for _, u := range users {
			if _, twice := seen[u]; twice || u == 0 {
				return fmt.Errorf("%w: user %d is 0 or named twice", errInvalid, u)
			}
			seen[u] = struct{}{}
		}
	}
	return nil
}
