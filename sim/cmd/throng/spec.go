package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"throng/sim/scenario"
)

// scenarioPath finds a scenario by file or name.
func scenarioPath(name string) string {
	if strings.ContainsRune(name, os.PathSeparator) || strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") {
		return name
	}
	return filepath.Join("scenarios", name+".yaml")
}

// loadSpec reads a scenario and applies the flags.
func loadSpec(name string, f *runFlags) (*scenario.Spec, error) {
	spec, err := scenario.Load(scenarioPath(name))
	if err != nil {
		return nil, &codedError{exitUsage, err}
	}
	var scale, steady *float64
	var seed *uint64
	if f.scale != "" {
		v, err := parseRatio(f.scale)
		if err != nil {
			return nil, &codedError{exitUsage, fmt.Errorf("--scale %q: %w", f.scale, err)}
		}
		scale = &v
	}
	if f.duration != "" {
		d, err := time.ParseDuration(f.duration)
		if err != nil || d <= 0 {
			return nil, &codedError{exitUsage, fmt.Errorf("--duration %q is not a length of time; write it as 60s or 2m", f.duration)}
		}
		v := d.Seconds()
		steady = &v
	}
	if f.seedSet {
		seed = &f.seed
	}
	if spec, err = spec.WithOverrides(scale, steady, seed); err != nil {
		return nil, &codedError{exitUsage, err}
	}
	if f.agents > 0 {
		if spec, err = spec.WithAgents(f.agents); err != nil {
			return nil, &codedError{exitUsage, err}
		}
	}
	return spec, nil
}

// parseRatio reads 1/5000 or 0.0002.
func parseRatio(s string) (float64, error) {
	a, b, frac := strings.Cut(s, "/")
	x, err := strconv.ParseFloat(strings.TrimSpace(a), 64)
	if err == nil && frac {
		var y float64
		if y, err = strconv.ParseFloat(strings.TrimSpace(b), 64); err == nil {
			x /= y
		}
	}
	if err != nil || !(x > 0) || x > 1 {
		return 0, fmt.Errorf("is not a share between 0 and 1; write it as 1/5000")
	}
	return x, nil
}
