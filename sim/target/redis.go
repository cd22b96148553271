package target

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// ProbeRedis sends PING.
func ProbeRedis(ctx context.Context, addr string) error {
	answers, err := askRedis(ctx, addr, time.Second, "PING")
	if err == nil && answers[0] != "+PONG" {
		err = fmt.Errorf("answered %q to PING", answers[0])
	}
	return err
}

// FlushRedis empties the Redis at addr, as an operator's mistake or a failover
// would, and returns how many keys it had.
func FlushRedis(ctx context.Context, addr string) (keys int64, err error) {
	answers, err := askRedis(ctx, addr, flushTimeout, "DBSIZE", "FLUSHALL")
	if err != nil {
		return 0, fmt.Errorf("target: flush redis: %w", err)
	}
	if answers[1] != "+OK" {
		return 0, fmt.Errorf("target: flush redis: it answered %q", answers[1])
	}
	keys, err = strconv.ParseInt(strings.TrimPrefix(answers[0], ":"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("target: flush redis: it answered %q to DBSIZE", answers[0])
	}
	return keys, nil
}

const flushTimeout = 10 * time.Second

// askRedis sends commands without arguments and returns an answer of one line
// to each.
func askRedis(ctx context.Context, addr string, timeout time.Duration, commands ...string) ([]string, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var out strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&out, "*1\r\n$%d\r\n%s\r\n", len(c), c)
	}
	if _, err := conn.Write([]byte(out.String())); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	answers := make([]string, len(commands))
	for i := range answers {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		answers[i] = strings.TrimRight(line, "\r\n")
	}
	return answers, nil
}
