//go:build race

package main

// raceEnabled: this test binary, and so every role it starts, runs under the
// race detector.
const raceEnabled = true
