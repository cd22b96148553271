// Command peers runs what others use for this job, where the user has installed
// it, beside throng on the same work, and writes the comparison as a page. It
// builds and fetches nothing: for what is missing it prints the plain command
// that installs it, and says NOT RUN. It owns reports/peers; the work of the
// generators is that of sim/load/roundtrip. It is run in the top folder of the
// project, as `make bench-peers` does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

// settings of a comparison.
type settings struct {
	users, steadyS, rounds int
	out                    string
	paths                  map[string]string // of peers, by name; "" to look for it
}

// peer is a program of others.
type peer struct {
	name    string // of the program
	install []string
	version []string // arguments
}

func peers() []peer {
	return []peer{
		{"k6", []string{"go install go.k6.io/k6@latest"}, []string{"version"}},
		{"centrifugo", []string{"go install github.com/centrifugal/centrifugo/v6@latest"}, []string{"version"}},
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 { // the two that this program starts of itself
		switch args[0] {
		case "gateway":
			return serveGateway(os.Stdin, out)
		case "generator":
			return playOurs(ctx, args[1:], out)
		}
	}
	s := settings{paths: map[string]string{}}
	set := flag.NewFlagSet("peers", flag.ContinueOnError)
	set.IntVar(&s.users, "users", 5000, "users of the generators, each with one message a second")
	set.IntVar(&s.steadyS, "steady", 20, "seconds that are measured")
	set.IntVar(&s.rounds, "rounds", 3, "times that each is run, in turns")
	set.StringVar(&s.out, "out", "reports/peers", "folder of the page")
	for _, p := range peers() {
		set.Func(p.name, "path of "+p.name+", instead of the one that is found", func(v string) error { s.paths[p.name] = v; return nil })
	}
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if _, err := os.Stat(scriptOfK6); err != nil {
		return fmt.Errorf("run it in the project's top folder: %w", err)
	}
	return compare(ctx, s, out)
}

// compare runs everybody who is there and writes the page.
func compare(ctx context.Context, s settings, out io.Writer) error {
	page := &comparison{Date: time.Now().UTC().Format("2006-01-02"), Machine: machine(), Users: s.users, SteadyS: s.steadyS}
	found := map[string]string{}
	for _, p := range peers() {
		path, err := find(p.name, s.paths[p.name])
		if err != nil {
			fmt.Fprintf(out, "NOT RUN: %s is not installed. To install it:\n", p.name)
			for _, line := range p.install {
				fmt.Fprintln(out, "    "+line)
			}
			page.NotRun = append(page.NotRun, p.name)
			continue
		}
		found[p.name] = path
		page.Versions = append(page.Versions, version(ctx, path, p))
	}
	if len(found) == 0 {
		return errors.New("no peer is installed: nothing to compare with")
	}
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	if path := found["k6"]; path != "" {
		if err := page.generators(ctx, s, path, say); err != nil {
			return err
		}
	}
	if path := found["centrifugo"]; path != "" {
		if err := page.backends(ctx, s, path, say); err != nil {
			return err
		}
	}
	if err := page.write(s.out); err != nil {
		return err
	}
	say("%s", filepath.Join(s.out, "README.md"))
	return nil
}

// find returns the path of a program: as given, on PATH, or where `go install`
// puts it.
func find(name, given string) (string, error) {
	if given != "" {
		return exec.LookPath(given)
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	home, homeErr := os.UserHomeDir()
	if homeErr != nil {
		return "", err
	}
	return exec.LookPath(filepath.Join(home, "go", "bin", name))
}

// version is the first line that the program says of itself.
func version(ctx context.Context, path string, p peer) string {
	said, err := exec.CommandContext(ctx, path, p.version...).Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(said)), "\n")
	if err != nil || line == "" {
		return p.name + ", version not known"
	}
	return line
}

// machine names the processor and what else decides how fast it is.
func machine() string {
	cpu := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d cores of %s, %s", runtime.NumCPU(), cpu, runtime.Version())
}
