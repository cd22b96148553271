// Command chatd is one process of the chat backend, or all of it in one. See
// chatd --help.
package main

import (
	"context"
	"fmt"
	"os"

	"throng/system"
)

func main() {
	if err := system.RelaxTimers(); err != nil {
		fmt.Fprintf(os.Stderr, "note: this process costs more CPU than it needs to: %v\n", err)
	}
	os.Exit(system.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
