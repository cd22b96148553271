package containers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// connect returns a provider whose daemon answers. The reaper of testcontainers
// is an image that would have to be pulled, so ours takes its place.
func connect(ctx context.Context) (*testcontainers.DockerProvider, error) {
	if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
		return nil, fmt.Errorf("containers: %w", err)
	}
	tclog.SetDefault(tclog.NewNoopLogger()) // it would print a banner
	p, err := testcontainers.NewDockerProvider(testcontainers.WithLogger(tclog.NewNoopLogger()))
	if err != nil {
		return nil, fmt.Errorf("containers: no Docker daemon answers (make docker starts one): %w", err)
	}
	if _, err := p.Client().Ping(ctx, client.PingOptions{}); err != nil {
		return nil, errors.Join(fmt.Errorf("containers: no Docker daemon answers (make docker starts one): %w", err), p.Client().Close())
	}
	return p, nil
}

// Available returns nil when a daemon answers and has the images, else what is
// missing. It pulls and changes nothing.
func Available(ctx context.Context, images Images) error {
	p, err := connect(ctx)
	if err != nil {
		return err
	}
	_, err = images.resolve(ctx, p.Client())
	return errors.Join(err, p.Client().Close())
}

// makeNetwork makes the run's network and returns its name.
func (d *Deployment) makeNetwork(ctx context.Context) (string, error) {
	name := "throng-" + d.run
	ctx, cancel := settled(ctx)
	defer cancel()
	_, err := d.api.NetworkCreate(ctx, name, client.NetworkCreateOptions{Driver: "bridge", Labels: d.labels("network")})
	if err != nil {
		return "", fmt.Errorf("containers: network: %w", err)
	}
	return name, nil
}

// binding publishes a port of a container on a port of this host.
func binding(containerPort string, hostPort int) (network.Port, network.PortBinding, error) {
	port, err := network.ParsePort(containerPort + "/tcp")
	if err != nil {
		return network.Port{}, network.PortBinding{}, fmt.Errorf("containers: port %q: %w", containerPort, err)
	}
	return port, network.PortBinding{HostIP: netip.MustParseAddr(loopback), HostPort: strconv.Itoa(hostPort)}, nil
}

// settled returns a context for what changes the daemon's state: a request that
// is given up half-way can have its effect later, after the removal of the run.
// It is done at once where ctx is done already, and else when the change is.
func settled(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Err() != nil {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
}

// changeTimeout bounds one change of the daemon's state.
const changeTimeout = 60 * time.Second
