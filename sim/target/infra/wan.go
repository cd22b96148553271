package infra

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"

	"throng/sim/target/wan"
)

// RunWAN runs the proxies between zones that the file at path describes, until
// ctx is done.
func RunWAN(ctx context.Context, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("infra: wan: %w", err)
	}
	var cfg wan.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return fmt.Errorf("infra: wan: %s: %w", path, err)
	}
	return wan.Run(ctx, cfg, func(addr string) (net.Listener, error) {
		return listenRetry(ctx, addr, func() (net.Listener, error) { return net.Listen("tcp", addr) })
	})
}
