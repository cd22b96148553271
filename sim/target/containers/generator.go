package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// generatorShares is to the 1,024 of every other container what the weight of a
// process at nice -10 is to that of one at 0 (sched_prio_to_weight, Linux).
const generatorShares = 9548

// GeneratorConfig says how the load generator runs.
type GeneratorConfig struct {
	// Args returns the arguments of the binary; attachment is the path of the
	// file for Attach.
	Args func(attachment string) []string
	// Writable folders and ReadOnly files and folders of this host, under the
	// same absolute paths in the container: the run folder, the scenario.
	Writable, ReadOnly []string
	Env                []string
	Stdout, Stderr     io.Writer
}

// RunGenerator runs the binary of the roles as a container on the deployment's
// network, so that no port proxy stands in the measured path, and returns its
// exit code. The end of soft interrupts it once (SIGINT), that of hard kills it.
func (d *Deployment) RunGenerator(soft, hard context.Context, cfg GeneratorConfig) (int, error) {
	attachment, err := d.writeAttachment()
	if err != nil {
		return 0, err
	}
	m := &member{d: d, role: RoleGenerator, infra: true, image: d.images.role, cmd: cfg.Args(attachment),
		env:  environment(append(append([]string{}, d.cfg.Env...), cfg.Env...)),
		user: fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()),
		// A client's every connection has the same other end.
		sysctls: map[string]string{"net.ipv4.ip_local_port_range": "1024 65535"},
		// It raises its own priority, as it does without a container. That holds
		// against its own threads alone; against other containers their shares do.
		capAdd: []string{"SYS_NICE"}, cpuShares: generatorShares,
	}
	if m.binds, err = binds(append([]string{d.work.path}, cfg.Writable...), cfg.ReadOnly); err != nil {
		return 0, err
	}
	if err := m.createWith(hard, nil, network.PortMap{}); err != nil {
		return 0, err
	}
	defer m.discard()
	output, err := m.output(hard, cfg.Stdout, cfg.Stderr)
	if err != nil {
		return 0, err
	}
	exited, err := m.start(hard)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	d.generator = m
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.generator = nil
		d.mu.Unlock()
	}()
	return m.await(soft, hard, exited, output)
}

// await waits for the end of the generator and of its output.
func (m *member) await(soft, hard context.Context, exited <-chan exit, output <-chan error) (int, error) {
	softDone := soft.Done()
	for {
		select {
		case <-softDone:
			softDone = nil
			if _, err := m.d.api.ContainerKill(hard, m.id, client.ContainerKillOptions{Signal: "INT"}); err != nil && hard.Err() == nil {
				return 0, fmt.Errorf("containers: interrupt the generator: %w", err)
			}
		case <-hard.Done():
			return 0, fmt.Errorf("containers: the generator was stopped: %w", hard.Err())
		case <-exited:
			if err := <-output; err != nil && hard.Err() == nil {
				return 0, fmt.Errorf("containers: output of the generator: %w", err)
			}
			info, err := m.d.api.ContainerInspect(hard, m.id, client.ContainerInspectOptions{})
			if err != nil {
				return 0, fmt.Errorf("containers: exit code of the generator: %w", err)
			}
			return info.Container.State.ExitCode, nil
		}
	}
}

// output copies what the container writes until it ends.
func (m *member) output(ctx context.Context, stdout, stderr io.Writer) (<-chan error, error) {
	res, err := m.d.api.ContainerAttach(ctx, m.id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return nil, fmt.Errorf("containers: output of the generator: %w", err)
	}
	done := make(chan error, 1)
	m.d.waits.Go(func() {
		stop := context.AfterFunc(ctx, res.Close)
		_, err := stdcopy.StdCopy(stdout, stderr, res.Reader)
		stop()
		res.Close()
		done <- err
	})
	return done, nil
}

// discard removes the container, so that another can take its name.
func (m *member) discard() {
	m.mu.Lock()
	m.wanted = false
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	// What this leaves, Close removes.
	_, _ = m.d.api.ContainerRemove(ctx, m.id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
}

// binds mounts paths of this host under their own names.
func binds(writable, readOnly []string) ([]string, error) {
	var out []string
	add := func(paths []string, suffix string) error {
		for _, p := range paths {
			abs, err := filepath.Abs(p)
			if err == nil {
				_, err = os.Stat(abs) // the daemon would make a folder of it
			}
			if err != nil {
				return fmt.Errorf("containers: mount: %w", err)
			}
			out = append(out, abs+":"+abs+suffix)
		}
		return nil
	}
	err := errors.Join(add(writable, ""), add(readOnly, ":ro"))
	return out, err
}
