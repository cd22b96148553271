package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"throng/sim/report"
	"throng/sim/scenario"
)

func (c *cli) scenarioCommand() *cobra.Command {
	f := &runFlags{}
	describe := &cobra.Command{
		Use:   "describe SCENARIO",
		Short: "Prints what a scenario resolves to: rates, phases and the arithmetic up to 100 billion messages a day",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			spec, err := loadSpec(args[0], f)
			if err != nil {
				return err
			}
			spec.Describe(c.stdout)
			return nil
		},
	}
	describe.Flags().StringVar(&f.scale, "scale", "", "share of the whole service, as 1/5000 (default: the scenario's)")
	describe.Flags().StringVar(&f.duration, "duration", "", "length of the steady phase, as 60s (default: the scenario's)")
	list := &cobra.Command{
		Use: "list", Short: "Lists the scenarios under scenarios/ with their questions", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return c.listScenarios() },
	}
	cmd := &cobra.Command{Use: "scenario", Short: "Lists and explains scenarios"}
	cmd.AddCommand(describe, list)
	return cmd
}

func (c *cli) listScenarios() error {
	files, err := filepath.Glob(filepath.Join("scenarios", "*.yaml"))
	if err != nil {
		return &codedError{exitInternal, err}
	}
	if len(files) == 0 {
		return &codedError{exitUsage, fmt.Errorf("no scenarios here: run throng in the folder that has scenarios/")}
	}
	for _, file := range files {
		spec, err := scenario.Load(file)
		if err != nil {
			return &codedError{exitUsage, err}
		}
		fmt.Fprintf(c.stdout, "%-16s %s\n", strings.TrimSuffix(filepath.Base(file), ".yaml"), spec.Question)
	}
	return nil
}

func (c *cli) reportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "report DIR",
		Short: "Makes the report of a run folder again",
		Long: `report reads what a run recorded and writes result.json, report.html, report.md,
junit.xml and the plots again. It needs nothing but the folder. The exit code
is the run's verdict.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := os.Stat(args[0]); err != nil {
				return &codedError{exitUsage, err}
			}
			res, err := report.Build(args[0])
			if err != nil {
				return &codedError{exitUsage, err}
			}
			c.exit = res.ExitCode()
			return res.Terminal(c.stdout, isTerminal(c.stdout))
		},
	}
}
