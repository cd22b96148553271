package system

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

// build makes instance i of a role with its adapters.
func (c *Config) build(r Role, i int, log *slog.Logger, reg prometheus.Registerer) (built, error) {
	return built{}, fmt.Errorf("role %s is not built yet", r)
}
