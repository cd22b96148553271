// Command chatd is one process of the chat backend, or all of it in one. See
// chatd --help.
package main

import (
	"context"
	"os"

	"throng/system"
)

func main() {
	os.Exit(system.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
