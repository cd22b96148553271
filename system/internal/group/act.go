package group

import (
	"context"
	"errors"
	"slices"
	"time"
	"unicode/utf8"

	"throng/system/internal/limit"
	"throng/system/internal/rpc"
	"throng/system/wire"
)

const (
	maxDescriptionBytes = 2048
	maxIconBytes        = 512
)

// Act implements rpc.GroupServer. A change is answered when it is in the
// group's log. After an error it may have been made; the same request again
// finds out, and has no second effect.
func (s *Service) Act(ctx context.Context, act *rpc.GroupAct) (*wire.GroupResult, error) {
	req := act.GetRequest()
	res := &wire.GroupResult{RequestId: req.GetRequestId()}
	info, err := s.act(ctx, act)
	var no *refusal
	switch {
	case errors.As(err, &no):
		res.Code, res.Detail, res.RetryAfterMs = no.code, no.detail, uint32(no.retry.Milliseconds())
	case errors.Is(err, ErrNoGroup):
		res.Code = wire.Code_CODE_NO_SUCH_GROUP
	case errors.Is(err, errNoUser):
		res.Code, res.Detail = wire.Code_CODE_NO_SUCH_USER, err.Error()
	case err != nil:
		return nil, statusOf(err)
	}
	res.Group = info
	s.m.acts.WithLabelValues(req.GetAction().String(), res.Code.String()).Inc()
	return res, nil
}

func (s *Service) act(ctx context.Context, act *rpc.GroupAct) (*wire.GroupInfo, error) {
	req, user := act.GetRequest(), act.GetUser()
	if err := validateAct(user, req); err != nil {
		return nil, err
	}
	id := req.Group
	if req.Action == wire.GroupRequest_ACTION_CREATE {
		id = wire.GroupIDOf(user, act.Device, req.RequestId)
		if err := s.mayCreate(user); err != nil {
			return nil, err
		}
	}
	if owner := s.owner(id); owner != s.cfg.Instance {
		res, err := s.peers[owner].Act(ctx, act)
		if err == nil && res.Code != 0 {
			err = refuse(res.Code, res.Detail)
		}
		return res.GetGroup(), err
	}
	if req.Action == wire.GroupRequest_ACTION_INFO {
		st, err := s.cfg.Store.Current(ctx, id)
		if err != nil {
			return nil, err
		}
		if st.member(user) == nil {
			return nil, refuse(wire.Code_CODE_NOT_MEMBER, "")
		}
		info := infoOf(id, st, user)
		for _, m := range st.Members {
			info.Members = append(info.Members, &wire.GroupMember{User: m.User, Admin: m.Admin})
		}
		return info, nil
	}
	if req.Action == wire.GroupRequest_ACTION_CREATE || req.Action == wire.GroupRequest_ACTION_ADD {
		if err := s.exist(ctx, req.Users); err != nil {
			return nil, err
		}
	}
	if req.Action == wire.GroupRequest_ACTION_CREATE {
		if err := s.ensureTopics(ctx, id); err != nil {
			return nil, err
		}
	}
	by := Request{User: user, Device: act.Device, ID: req.RequestId}
	st, _, err := s.edit(ctx, id, by, func(before *State) (*wire.GroupChange, error) { return decide(before, user, req) })
	if err != nil {
		return nil, err
	}
	return infoOf(id, st, user), nil
}

// mayCreate counts a request of a user to make a group. One instance counts those of
// a user, the one that gateways send them to; one that the request is handed on to
// does not.
func (s *Service) mayCreate(user uint64) error {
	if s.owner(user) != s.cfg.Instance {
		return nil
	}
	rate := limit.Rate{PerSecond: float64(s.cfg.CreationsPerHour) / 3600, Burst: int64(s.cfg.CreationsPerHour) - 1}
	var wait time.Duration
	s.creators.Do(user, func(b *limit.Bucket) { wait = b.Take(rate, 1, time.Since(s.start)) })
	if wait > 0 {
		return &refusal{code: wire.Code_CODE_RATE_LIMITED, detail: "too many groups made in an hour", retry: wait + time.Millisecond}
	}
	return nil
}

// infoOf tells a user about a group; who is no member learns its version only.
func infoOf(id uint64, st *State, user uint64) *wire.GroupInfo {
	if st.member(user) == nil {
		return &wire.GroupInfo{Group: id, Version: st.Version}
	}
	return &wire.GroupInfo{Group: id, Version: st.Version, Name: st.Name, Description: st.Description, Icon: st.Icon,
		Inactive: st.Inactive, Size: uint32(len(st.Members))}
}

// validateAct checks a request by itself. The error is a *refusal.
func validateAct(user uint64, req *wire.GroupRequest) error {
	invalid := func(detail string) error { return refuse(wire.Code_CODE_INVALID, detail) }
	create, update := req.GetAction() == wire.GroupRequest_ACTION_CREATE, req.GetAction() == wire.GroupRequest_ACTION_UPDATE
	users := false // whether there must be some
	switch req.GetAction() {
	case wire.GroupRequest_ACTION_INFO, wire.GroupRequest_ACTION_CREATE, wire.GroupRequest_ACTION_UPDATE,
		wire.GroupRequest_ACTION_LEAVE, wire.GroupRequest_ACTION_DEACTIVATE:
	case wire.GroupRequest_ACTION_ADD, wire.GroupRequest_ACTION_REMOVE, wire.GroupRequest_ACTION_PROMOTE, wire.GroupRequest_ACTION_DEMOTE:
		users = true
	default:
		return invalid("unknown action")
	}
	switch {
	case user == 0 || req.RequestId == 0:
		return invalid("no user or no request_id")
	case (req.Group == 0) != create:
		return invalid("every action but create needs the group")
	case users && len(req.Users) == 0, !users && !create && len(req.Users) > 0:
		return invalid("users are of add, remove, promote and demote, which need some, and of create")
	case create && req.GetName() == "", update && req.Name != nil && *req.Name == "":
		return invalid("a group has a name")
	case update && req.Name == nil && req.Description == nil && req.Icon == nil:
		return invalid("nothing to change")
	case !create && !update && (req.Name != nil || req.Description != nil || req.Icon != nil):
		return invalid("name, description and icon are of create and update")
	case len(req.GetName()) > maxNameBytes, len(req.GetDescription()) > maxDescriptionBytes, len(req.GetIcon()) > maxIconBytes:
		return refuse(wire.Code_CODE_TOO_LARGE, "name, description or icon is too long")
	case !utf8.ValidString(req.GetName()), !utf8.ValidString(req.GetDescription()), !utf8.ValidString(req.GetIcon()):
		return invalid("text that is not UTF-8")
	case len(req.Users) >= MaxMembers && create, len(req.Users) > MaxMembers:
		return refuse(wire.Code_CODE_GROUP_FULL, "")
	}
	if create && slices.Contains(req.Users, user) {
		return invalid("who creates a group is in it already")
	}
	if err := distinct(req.Users); err != nil {
		return invalid(err.Error())
	}
	return nil
}
