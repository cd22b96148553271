package rpc

import (
	"maps"
	"slices"
	"strings"
)

// callers is the profile of what each role may reach of the others: who may call
// a method. With an Identity it is enforced, for connections and for each call; the
// network policies and ARCHITECTURE.md are compared with it.
var callers = map[string][]string{
	Message_Submit_FullMethodName:   {"gateway"},
	Inbox_Append_FullMethodName:     {"fanout", "message"},
	Inbox_Sessions_FullMethodName:   {"gateway"},
	Inbox_Provision_FullMethodName:  {"group"},
	Inbox_Unknown_FullMethodName:    {"group"},
	Receipts_Forward_FullMethodName: {"inbox"},
	Push_Notify_FullMethodName:      {"inbox"},
	Group_Check_FullMethodName:      {"message"},
	Group_Members_FullMethodName:    {"fanout", "media"},
	Group_Applied_FullMethodName:    {"fanout"},
	Group_Change_FullMethodName:     {"group"},
	Group_Provision_FullMethodName:  {}, // imports come by HTTP
	Group_Act_FullMethodName:        {"gateway", "group"},
}

// server returns the role that serves a method: Inbox of /throng.rpc.Inbox/Append,
// and Receipts is the inbox's too.
func server(method string) string {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/throng.rpc."), "/")
	if service == "Receipts" {
		return "inbox"
	}
	return strings.ToLower(service)
}

// Reaches returns the roles that a role may call, sorted.
func Reaches(caller string) []string {
	called := map[string]bool{}
	for method, may := range callers {
		if slices.Contains(may, caller) {
			called[server(method)] = true
		}
	}
	return slices.Sorted(maps.Keys(called))
}

// anyReaches reports whether one of some roles may call callee.
func anyReaches(roles []string, callee string) bool {
	return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(Reaches(r), callee) })
}

// mayCall reports whether one of some roles may call a method.
func mayCall(roles []string, method string) bool {
	return slices.ContainsFunc(callers[method], func(r string) bool { return slices.Contains(roles, r) })
}
