// Package system wires the backend: from a Config it builds the adapters
// (Kafka, Redis, SQL) and the roles, gives each role what it needs, and runs
// them with a debug port. It is the only place that decides which adapter a
// role gets. It also holds the command line of the backend (Main), so that
// every binary that wants to be a backend process can be one. It never imports
// anything of sim.
package system

import (
	"fmt"
	"slices"
	"strings"
)

// Role names what a process does.
type Role string

// The roles. All runs every instance of every role of a topology in one process.
const (
	Gateway Role = "gateway"
	Message Role = "message"
	Fanout  Role = "fanout"
	Group   Role = "group"
	Inbox   Role = "inbox"
	Push    Role = "push"
	Media   Role = "media"
	All     Role = "all"
)

// Roles returns the roles that are processes of their own, in the order in
// which they depend on each other: later ones call earlier ones.
func Roles() []Role { return []Role{Push, Inbox, Group, Media, Message, Fanout, Gateway} }

// ParseRole returns the role of that name; All is one.
func ParseRole(name string) (Role, error) {
	if r := Role(name); r == All || slices.Contains(Roles(), r) {
		return r, nil
	}
	names := []string{string(All)}
	for _, r := range Roles() {
		names = append(names, string(r))
	}
	slices.Sort(names)
	return "", fmt.Errorf("no role %q: there are %s", name, strings.Join(names, ", "))
}
