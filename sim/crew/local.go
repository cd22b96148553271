package crew

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// TokenEnv names the environment variable that holds the token: arguments can
// be read by everybody on a machine.
const TokenEnv = "THRONG_AGENT_TOKEN"

// stopWithin is how long a local agent has to end by itself when the run is over.
const stopWithin = 10 * time.Second

// process is a local agent's.
type process struct {
	cmd    *exec.Cmd
	stdin  io.Closer // its end tells the agent that the leader is gone
	exited chan struct{}
	err    error // of Wait, once exited is closed
}

// startAgent executes this program again as an agent that joins url. It is in a
// process group of its own, so that Ctrl-C reaches the leader alone, and writes its
// spool into folder. It runs as many threads of Go as are its part of the cores,
// among so many agents, unless the environment says how many: more would only wake
// each other.
func startAgent(exe, url, token, folder, logPath string, among int, onExit func(*process)) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("crew: log of an agent: %w", err)
	}
	defer log.Close() // the agent has its own copy
	cmd := exec.Command(exe, "agent", "--join", url, "--folder", folder, "--exit-with-parent")
	cmd.Env = append(os.Environ(), TokenEnv+"="+token)
	if os.Getenv("GOMAXPROCS") == "" {
		cmd.Env = append(cmd.Env, "GOMAXPROCS="+strconv.Itoa((runtime.NumCPU()+among-1)/among))
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("crew: agent: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("crew: start an agent: %w", err)
	}
	p := &process{cmd: cmd, stdin: stdin, exited: make(chan struct{})}
	go func() {
		if p.err = cmd.Wait(); p.err == nil {
			p.err = errors.New("exit status 0")
		}
		close(p.exited)
		onExit(p)
	}()
	return p, nil
}

// stop ends the process: it has been told to, and is killed when that was not
// enough.
func (p *process) stop() {
	_ = p.stdin.Close()
	wait := time.NewTimer(stopWithin)
	defer wait.Stop()
	select {
	case <-p.exited:
	case <-wait.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

func agentLog(dir string, n int) string {
	return filepath.Join(dir, "agent-"+strconv.Itoa(n)+".log")
}
