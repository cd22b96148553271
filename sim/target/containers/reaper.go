package containers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
)

// What a run has made is removed by Close. For the case that the harness does
// not get there, it has a reaper: a process of the same binary, in a session of
// its own, that holds the other end of a pipe. When the pipe ends without a
// word of dismissal, it removes everything with the run's label. For the case
// that the reaper dies too, the next Start on the machine sweeps: it removes
// the runs whose lock nobody holds any more.

const (
	verbReaper = "reaper"
	reaperWord = "done" // of dismissal
	reaperIs   = "ready"
	// A container that the daemon was still making when the harness died comes
	// to light later: the reaper looks until it has found nothing for this long.
	reaperQuiet = 10 * time.Second
	reaperPause = 500 * time.Millisecond
	reaperLimit = 5 * time.Minute
	reaperStart = 15 * time.Second
)

// Main runs `containers reaper RUN FOLDER`, which is not for people, and returns
// the exit code.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) != 3 || args[0] != verbReaper {
		fmt.Fprintln(stderr, "usage: containers reaper RUN FOLDER")
		return 64
	}
	if err := reap(ctx, args[1], args[2], stdin, stdout); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// reap waits for the end of stdin, and removes the run if it was not dismissed.
func reap(ctx context.Context, run, folder string, stdin io.Reader, stdout io.Writer) error {
	p, err := connect(ctx)
	if err != nil {
		return err
	}
	api := p.Client()
	defer api.Close()
	fmt.Fprintln(stdout, reaperIs)
	said, _ := io.ReadAll(stdin) // an error is an end too
	if strings.TrimSpace(string(said)) == reaperWord {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reaperLimit)
	defer cancel()
	quietSince := time.Now()
	for {
		found, err := removeAll(ctx, api, run)
		if found > 0 || err != nil {
			quietSince = time.Now()
		}
		if time.Since(quietSince) >= reaperQuiet {
			break
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("containers: run %s is not removed: %w", run, ctx.Err()), err)
		case <-time.After(reaperPause):
		}
	}
	if strings.HasPrefix(filepath.Base(folder), workPrefix) {
		if err := os.RemoveAll(folder); err != nil {
			return fmt.Errorf("containers: %w", err)
		}
	}
	return nil
}

// reaper is the process, seen from the harness.
type reaper struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// startReaper returns when the reaper watches.
func startReaper(ctx context.Context, exe string, env []string, run, folder string) (*reaper, error) {
	cmd := exec.Command(exe, "containers", verbReaper, run, folder)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no Ctrl-C reaches it
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("containers: reaper: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("containers: reaper: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("containers: reaper: %w", err)
	}
	first := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n') // empty when it has ended
		first <- strings.TrimSpace(line)
	}()
	var said string
	select {
	case said = <-first:
	case <-ctx.Done():
	case <-time.After(reaperStart):
	}
	if said != reaperIs {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, errors.Join(fmt.Errorf("containers: the reaper (%s containers %s) did not start, it said %q: %s",
			filepath.Base(exe), verbReaper, said, strings.TrimSpace(stderr.String())), ctx.Err())
	}
	return &reaper{cmd, stdin}, nil
}

// dismiss ends the reaper: there is nothing to remove any more.
func (r *reaper) dismiss() error {
	_, err := io.WriteString(r.stdin, reaperWord+"\n")
	if err := errors.Join(err, r.stdin.Close(), r.cmd.Wait()); err != nil {
		return fmt.Errorf("containers: dismiss the reaper: %w", err)
	}
	return nil
}

// removeRun removes everything of a run; what is being created meanwhile is not
// its business.
func removeRun(ctx context.Context, api client.APIClient, run string) error {
	for {
		found, err := removeAll(ctx, api, run)
		if err != nil {
			return fmt.Errorf("containers: remove run %s: %w", run, err)
		}
		if found == 0 {
			return nil
		}
	}
}

// removeAll removes the containers with their volumes, and then the networks,
// of a run, and returns how many there were.
func removeAll(ctx context.Context, api client.APIClient, run string) (int, error) {
	mine := client.Filters{}.Add("label", labelRun+"="+run)
	list, err := api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: mine})
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, c := range list.Items {
		g.Go(func() error {
			_, err := api.ContainerRemove(gctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) { // conflict: somebody else is at it
				return fmt.Errorf("remove container %s: %w", c.ID[:12], err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return len(list.Items), err
	}
	nets, err := api.NetworkList(ctx, client.NetworkListOptions{Filters: mine})
	if err != nil {
		return len(list.Items), fmt.Errorf("list networks: %w", err)
	}
	for _, n := range nets.Items {
		if _, err := api.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
			return len(list.Items) + len(nets.Items), fmt.Errorf("remove network %s: %w", n.Name, err)
		}
	}
	return len(list.Items) + len(nets.Items), nil
}

// sweep removes the runs that harnesses of this host have left behind: those
// whose lock nobody holds. What cannot be removed stays for the next time.
func sweep(ctx context.Context, api client.APIClient) {
	host, err := os.Hostname()
	if err != nil {
		return
	}
	filter := client.Filters{}.Add("label", labelRun, labelHost+"="+host)
	locks := map[string]string{} // run to lock
	if list, err := api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filter}); err == nil {
		for _, c := range list.Items {
			locks[c.Labels[labelRun]] = c.Labels[labelLock]
		}
	}
	if list, err := api.NetworkList(ctx, client.NetworkListOptions{Filters: filter}); err == nil {
		for _, n := range list.Items {
			locks[n.Labels[labelRun]] = n.Labels[labelLock]
		}
	}
	for run, path := range locks {
		f, err := lockExisting(path)
		if err != nil {
			continue // it is held
		}
		if err := removeRun(ctx, api, run); err == nil && strings.HasPrefix(filepath.Base(filepath.Dir(path)), workPrefix) {
			_ = os.RemoveAll(filepath.Dir(path))
		}
		if f != nil {
			_ = f.Close()
		}
	}
}
