package system

import "throng/system/internal/rpc"

// Reach is the profile of what a role may reach.
type Reach struct {
	Roles  []Role   // by rpc; enforced where rpc_tls is set
	Stores []string // kafka, mysql (sqlite is in the process), redis, provider, s3
}

// Reaches returns the profile of a role. The network policies of
// deploy/kubernetes and the table in ARCHITECTURE.md say the same.
func Reaches(r Role) Reach {
	var out Reach
	for _, callee := range rpc.Reaches(string(r)) {
		out.Roles = append(out.Roles, Role(callee))
	}
	switch r {
	case Gateway:
		out.Stores = []string{"redis"}
	case Message, Fanout:
		out.Stores = []string{"kafka"}
	case Group:
		out.Stores = []string{"kafka", "mysql", "redis"}
	case Inbox:
		out.Stores = []string{"mysql"}
	case Push:
		out.Stores = []string{"provider"}
	case Media:
		out.Stores = []string{"mysql", "s3"}
	}
	return out
}
