package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"throng/sim/report"
)

// compareCommand puts two run folders side by side.
func (c *cli) compareCommand() *cobra.Command {
	var asJSON, asMarkdown bool
	cmd := &cobra.Command{
		Use:   "compare A B",
		Short: "Puts two run folders side by side: what differs, then the figures",
		Long: `compare reads two run folders and prints first what differs between the runs
(target, scenario, scale, seed, machine, versions), then rates, latency
quantiles, CPU for each send and delivery, memory and audit of both. A
difference is printed only where its 95 % interval excludes zero, "~" otherwise.

It judges nothing: the exit code is 0 whatever the figures say, and 64 when a
folder holds no run that can be compared.`,
		Example: "  throng compare reports/runs/groups_peak/latest reports/runs/small\n  throng compare before after --md > comparison.md",
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			if asJSON && asMarkdown {
				return &codedError{exitUsage, errors.New("--json and --md: one of them")}
			}
			cmp, err := report.Compare(args[0], args[1])
			if err != nil {
				return &codedError{exitUsage, err}
			}
			switch {
			case asJSON:
				data, err := cmp.JSON()
				if err != nil {
					return &codedError{exitInternal, err}
				}
				_, err = c.stdout.Write(data)
				return err
			case asMarkdown:
				_, err = fmt.Fprint(c.stdout, cmp.Markdown())
				return err
			}
			return cmp.Terminal(c.stdout, isTerminal(c.stdout))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "prints JSON")
	cmd.Flags().BoolVar(&asMarkdown, "md", false, "prints Markdown")
	return cmd
}
