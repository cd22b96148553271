package group

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/rpc"
	"throng/system/wire"
)

const (
	// maxPairs bounds the pairs of one Check.
	maxPairs = 8192
	// loadParallel bounds the groups that one Check loads at a time.
	loadParallel = 16
	// loadTimeout bounds one load, which several callers may wait for.
	loadTimeout = 5 * time.Second
)

// Check implements rpc.GroupServer: for each pair, may the user send to
// the group now.
func (s *Service) Check(ctx context.Context, req *rpc.CheckRequest) (*rpc.CheckResponse, error) {
	if len(req.Groups) != len(req.Users) || len(req.Groups) > maxPairs {
		return nil, status.Errorf(codes.InvalidArgument, "group: %d groups, %d users, at most %d", len(req.Groups), len(req.Users), maxPairs)
	}
	s.m.checks.Add(float64(len(req.Groups)))
	res := &rpc.CheckResponse{Codes: make([]wire.Code, len(req.Groups))}
	now := time.Now()
	var missing map[uint64][]int // places in the request, by group
	for i, g := range req.Groups {
		if h, _ := s.heads.get(g); h != nil && s.fresh(g, h, now) {
			s.m.cacheHit(tierProcess)
			res.Codes[i] = membership(h, req.Users[i])
			continue
		}
		if missing == nil {
			missing = map[uint64][]int{}
		}
		missing[g] = append(missing[g], i)
	}
	if len(missing) == 0 {
		return res, nil
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, loadParallel)
	for g, places := range missing {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			s.m.cacheMiss(tierProcess)
			h, err := s.current(ctx, g)
			switch {
			case errors.Is(err, ErrNoGroup):
				for _, i := range places {
					res.Codes[i] = wire.Code_CODE_NO_SUCH_GROUP
				}
			case err != nil:
				mu.Lock()
				failed = err
				mu.Unlock()
			default:
				for _, i := range places {
					res.Codes[i] = membership(h, req.Users[i])
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return nil, statusOf(failed)
	}
	return res, nil
}

func membership(h *head, user uint64) wire.Code {
	switch {
	case !h.has(user):
		return wire.Code_CODE_NOT_MEMBER
	case h.inactive:
		return wire.Code_CODE_GROUP_INACTIVE
	}
	return 0
}

// fresh reports whether h may be used without asking: every change of the
// groups this instance looks after passes here, of others it may miss one.
func (s *Service) fresh(group uint64, h *head, now time.Time) bool {
	return s.owns(group) || now.Sub(h.checked) < Staleness
}

// current returns the current version with its members. Callers for the same
// group share one load.
func (s *Service) current(ctx context.Context, group uint64) (*head, error) {
	ch := s.loads.DoChan(currentKey(group), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		return s.loadCurrent(ctx, group)
	})
	select {
	case r := <-ch:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*head), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func currentKey(group uint64) string { return "h" + strconv.FormatUint(group, 36) }

func (s *Service) loadCurrent(ctx context.Context, group uint64) (*head, error) {
	old, mark := s.heads.get(group)
	now := time.Now()
	// Who looks after the group must be exact, and a pointer can be behind when
	// the cache was away during a change; the others may be late.
	var pointer uint64
	known := false
	if !s.owns(group) {
		pointer, known = s.shared.version(ctx, group)
		if known && old != nil && pointer == old.version {
			h := *old
			h.checked = now
			s.heads.put(group, &h, mark)
			return &h, nil
		}
	}
	h := &head{checked: now}
	var v Versions
	var err error
	if known {
		if old != nil {
			pointer = max(pointer, old.version)
		}
		v, err = s.cfg.Store.Recent(ctx, group, pointer)
	} else {
		v, h.members, err = s.cfg.Store.Head(ctx, group)
		h.offset, h.placed = v.CurrentOffset, v.Known
	}
	if err != nil {
		return nil, fmt.Errorf("group %d: %w", group, err)
	}
	if len(s.peers) > 1 {
		s.shared.offer(ctx, group, v.Current)
	}
	h.version, h.inactive = v.Current, v.Inactive
	switch {
	case h.members != nil:
		s.m.cacheHit(tierSQL)
	case old != nil && old.version == v.Current:
		h.members = old.members
	default:
		if h.members, err = s.membersOf(ctx, group, v.Current); err != nil {
			return nil, err
		}
	}
	s.heads.put(group, h, mark)
	return h, nil
}

// membersOf returns the members of a version.
func (s *Service) membersOf(ctx context.Context, group, version uint64) ([]uint64, error) {
	members, err := s.shared.members(ctx, group, version, func() ([]uint64, error) {
		s.m.cacheHit(tierSQL)
		return s.cfg.Store.Members(ctx, group, version)
	})
	if err != nil {
		return nil, fmt.Errorf("group %d: members of version %d: %w", group, version, err)
	}
	return members, nil
}

// Members implements rpc.GroupServer. The version in force at the offset is
// the greater of what the caller has seen in the log and what the store knows
// to be at or before the offset. Whoever makes all changes of the group may know
// that too: where the current version is in the log at or before the offset, and
// none is being made that could follow it, it is the one. Nothing else is
// answered from a cache: an old answer would deliver to the wrong people for good.
func (s *Service) Members(ctx context.Context, req *rpc.MembersRequest) (*rpc.MembersResponse, error) {
	if s.owns(req.Group) {
		if h := s.heads.placed(req.Group, req.Offset); h != nil && h.version >= req.Version {
			s.m.cacheHit(tierProcess)
			return &rpc.MembersResponse{Version: h.version, Members: h.members}, nil
		}
	}
	v, err := s.cfg.Store.Versions(ctx, req.Group, req.Offset)
	if err != nil {
		return nil, statusOf(fmt.Errorf("group %d: %w", req.Group, err))
	}
	version := max(req.Version, v.At)
	if version > v.Current {
		return nil, status.Errorf(codes.Unavailable, "group %d: version %d is not in this store, which has %d", req.Group, version, v.Current)
	}
	if h, _ := s.heads.get(req.Group); h != nil && h.version == version {
		s.m.cacheHit(tierProcess)
		return &rpc.MembersResponse{Version: version, Members: h.members}, nil
	}
	s.m.cacheMiss(tierProcess)
	members, err, _ := s.loads.Do("m"+strconv.FormatUint(req.Group, 36)+"."+strconv.FormatUint(version, 36), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		return s.membersOf(ctx, req.Group, version)
	})
	if err != nil {
		return nil, statusOf(err)
	}
	return &rpc.MembersResponse{Version: version, Members: members.([]uint64)}, nil
}

// Applied implements rpc.GroupServer.
func (s *Service) Applied(ctx context.Context, req *rpc.AppliedRequest) (*rpc.AppliedResponse, error) {
	p := Position{Group: req.Group, Version: req.Version, Offset: req.Offset}
	if err := s.cfg.Store.Settle(ctx, []Position{p}); err != nil {
		return nil, statusOf(fmt.Errorf("group %d: position of version %d: %w", req.Group, req.Version, err))
	}
	s.relay.tell(p)
	return &rpc.AppliedResponse{}, nil
}

// statusOf gives an error its gRPC code.
func statusOf(err error) error {
	switch {
	case errors.Is(err, ErrNoGroup), errors.Is(err, errNoUser):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, ErrTooMany):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, errInvalid):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}
