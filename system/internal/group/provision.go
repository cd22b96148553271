package group

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"throng/system/internal/rpc"
	"throng/system/placement"
	"throng/system/wire"
)

const (
	maxNameBytes = 256
	// provisionUsers bounds the users of one call to an inbox.
	provisionUsers = 2000
	// createGroups and createMembers bound one transaction.
	createGroups  = 1000
	createMembers = 20000
	// lookupTimeout bounds the look-up of the users that a change names.
	lookupTimeout = 5 * time.Second
	// maxNamed bounds the unknown users that an error names.
	maxNamed = 10
)

var errNoUser = errors.New("group: no such user")

// provision registers users with the inbox instances that own them and creates
// groups. The counts are of what was asked for, new or not. Users and groups of
// an import come in any order, so that members need not exist yet.
func (s *Service) provision(ctx context.Context, p *wire.Provision) (*wire.ProvisionResult, error) {
	groups, err := newGroups(p.Groups)
	if err != nil {
		return nil, err
	}
	byInbox := make([][]*wire.ProvisionUser, len(s.inboxes))
	for _, u := range p.Users {
		if u.GetUser() == 0 || len(u.Devices) == 0 {
			return nil, fmt.Errorf("%w: user %d with %d devices", errInvalid, u.GetUser(), len(u.GetDevices()))
		}
		for _, d := range u.Devices {
			if d.GetDevice() >= wire.MaxDevices {
				return nil, fmt.Errorf("%w: device %d of user %d: the phone is 0, linked ones are 1 to %d", errInvalid, d.GetDevice(), u.User, wire.MaxDevices-1)
			}
		}
		i := placement.UserInboxInstance(u.User, len(s.inboxes))
		byInbox[i] = append(byInbox[i], u)
	}
	work, ctx := errgroup.WithContext(ctx)
	for i, users := range byInbox {
		work.Go(func() error { return s.provisionUsers(ctx, i, users) })
	}
	work.Go(func() error {
		for len(groups) > 0 {
			n, members := 0, 0
			for n < len(groups) && n < createGroups && members < createMembers {
				members += len(groups[n].Members)
				n++
			}
			if err := s.create(ctx, groups[:n]); err != nil {
				return fmt.Errorf("group: create %d groups: %w", n, err)
			}
			groups = groups[n:]
		}
		return nil
	})
	if err := work.Wait(); err != nil {
		return nil, err
	}
	return &wire.ProvisionResult{Users: uint64(len(p.Users)), Groups: uint64(len(p.Groups))}, nil
}

// create makes groups that do not exist yet.
func (s *Service) create(ctx context.Context, groups []NewGroup) error {
	ids := make([]uint64, len(groups))
	for i := range groups {
		ids[i] = groups[i].ID
	}
	if err := s.ensureTopics(ctx, ids...); err != nil {
		return err
	}
	_, err := s.cfg.Store.Create(ctx, groups)
	return err
}

// ensureTopics makes the place of the groups' logs. It comes before the groups:
// one that exists can be sent to.
func (s *Service) ensureTopics(ctx context.Context, groups ...uint64) error {
	if s.cfg.Topics == nil {
		return nil
	}
	return s.cfg.Topics.Ensure(ctx, groups)
}

func newGroups(groups []*wire.ProvisionGroup) ([]NewGroup, error) {
	out := make([]NewGroup, 0, len(groups))
	for _, g := range groups {
		switch {
		case g.GetGroup() == 0:
			return nil, fmt.Errorf("%w: a group without id", errInvalid)
		case len(g.Members) == 0 || len(g.Members) > MaxMembers:
			return nil, fmt.Errorf("%w: group %d with %d members, 1 to %d", errInvalid, g.Group, len(g.Members), MaxMembers)
		case len(g.Name) > maxNameBytes:
			return nil, fmt.Errorf("%w: name of group %d with %d bytes, at most %d", errInvalid, g.Group, len(g.Name), maxNameBytes)
		}
		if err := distinct(g.Members); err != nil {
			return nil, fmt.Errorf("group %d: %w", g.Group, err)
		}
		out = append(out, NewGroup{ID: g.Group, Name: g.Name, Members: g.Members})
	}
	return out, nil
}

// provisionUsers registers users with one inbox instance; one that is away is
// waited for.
func (s *Service) provisionUsers(ctx context.Context, inbox int, users []*wire.ProvisionUser) error {
	for len(users) > 0 {
		n := min(len(users), provisionUsers)
		_, err := s.inboxes[inbox].Provision(ctx, &rpc.ProvisionUsersRequest{Users: users[:n]})
		if status.Code(err) == codes.Unavailable && sleep(ctx, 100*time.Millisecond) {
			continue
		}
		if err != nil {
			return fmt.Errorf("group: provision %d users at inbox %d: %w", n, inbox, err)
		}
		users = users[n:]
	}
	return nil
}

// exist returns nil when all users are provisioned, else an errNoUser that
// names those that are not. Nobody can be removed from the directory, so that an
// answer stays right while the change is made.
func (s *Service) exist(ctx context.Context, users []uint64) error {
	byInbox := make([][]uint64, len(s.inboxes))
	for _, u := range users {
		i := placement.UserInboxInstance(u, len(s.inboxes))
		byInbox[i] = append(byInbox[i], u)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	unknown := make([][]uint64, len(s.inboxes))
	work, ctx := errgroup.WithContext(ctx)
	for i, users := range byInbox {
		if len(users) == 0 {
			continue
		}
		work.Go(func() error {
			res, err := s.inboxes[i].Unknown(ctx, &rpc.Users{Users: users})
			if err != nil {
				return fmt.Errorf("group: look up %d users at inbox %d: %w", len(users), i, err)
			}
			unknown[i] = res.Users
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	all := slices.Concat(unknown...)
	if len(all) == 0 {
		return nil
	}
	slices.Sort(all)
	more := ""
	if n := len(all) - maxNamed; n > 0 {
		all, more = all[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Errorf("%w: %v%s", errNoUser, all, more)
}
