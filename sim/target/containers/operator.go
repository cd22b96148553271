package containers

import (
	"context"

	"throng/sim/target"
	"throng/system"
	"throng/system/wire"
)

// Gateways returns the gateways as this host reaches them. A generator in a
// container is given others, see Attachment.
func (d *Deployment) Gateways() []string {
	var urls []string
	for i := range d.sys.Gateways {
		urls = append(urls, "ws://"+d.Address(string(system.Gateway), i, portMain))
	}
	return urls
}

func (d *Deployment) operator() *target.Admin {
	return &target.Admin{HTTP: d.http, Key: d.cfg.Key, URL: "http://" + d.Address(string(system.Group), 0, portAdmin)}
}

// Token returns a token that is good for a day.
func (d *Deployment) Token(user uint64, device uint32) (string, error) {
	return d.operator().Token(user, device)
}

// Provision sends what next yields to the first group instance.
func (d *Deployment) Provision(ctx context.Context, next func() (*wire.Provision, error)) (*wire.ProvisionResult, error) {
	return d.operator().Provision(ctx, next)
}

// ChangeMembers returns when the change is in the group's log.
func (d *Deployment) ChangeMembers(ctx context.Context, change *wire.MembershipChange) (*wire.MembershipResult, error) {
	return d.operator().ChangeMembers(ctx, change)
}

// Pushes reads the provider's feed.
func (d *Deployment) Pushes(ctx context.Context, f func(target.Push)) error {
	return target.ReadPushes(ctx, nil, "http://"+d.Address(RoleProvider, 0, portMain), f)
}
