package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// servePprof serves the generator's own profiles; the roles have debug ports of
// their own.
func (r *runner) servePprof() error {
	if r.flags.pprof == "" {
		return nil
	}
	ln, err := net.Listen("tcp", r.flags.pprof)
	if err != nil {
		return &codedError{exitUsage, fmt.Errorf("--pprof: %w", err)}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	context.AfterFunc(r.hard, func() { _ = srv.Close() })
	return nil
}
