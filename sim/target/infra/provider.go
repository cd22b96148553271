package infra

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spf13/cobra"
)

func providerFlags(cmd *cobra.Command, log *slog.Logger) func(context.Context) error {
	return func(context.Context) error { return errors.New("not yet") }
}
