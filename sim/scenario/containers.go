package scenario

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// Infrastructure says how much of it a target in containers starts. The
// embedded target has one broker and no replica whatever stands here.
type Infrastructure struct {
	// Brokers of Kafka, 1 or 3. With three every record is on three, and
	// acknowledged by two of them.
	Brokers int
	// Replicas of MySQL beside its primary.
	Replicas int
}

func (i *Infrastructure) fields() []field {
	return []field{
		{path: "infrastructure.brokers", kind: kindInt, min: 1, max: 3, def: "1", sparse: true, doc: "brokers of Kafka in containers, 1 or 3; with 3 each record is on three", to: &i.Brokers},
		{path: "infrastructure.replicas", kind: kindInt, min: 1, max: 8, def: "1", sparse: true, doc: "replicas of MySQL in containers, beside the primary", to: &i.Replicas},
	}
}

// Limit of each container of a role. Zero values leave it unlimited.
type Limit struct {
	CPUs        float64 // how many cores' worth of time
	CPUSet      string  // the cores that it may run on, as in 0-1,3
	MemoryBytes int64
}

// Limits of containers by role. Other targets have none.
type Limits struct {
	Gateway, Message, Fanout, Group, Inbox, Push, Media Limit
	Kafka, MySQL, Redis, S3, Provider, Generator        Limit
}

// RoleLimit is the limit of the containers of one role.
type RoleLimit struct {
	Role string
	Limit
}

// All returns the limits that limit something.
func (l Limits) All() []RoleLimit {
	var out []RoleLimit
	l.each(func(role string, limit *Limit, _ int64) {
		if *limit != (Limit{}) {
			out = append(out, RoleLimit{role, *limit})
		}
	})
	return out
}

// each calls f for every role with the least memory that it starts with.
func (l *Limits) each(f func(role string, limit *Limit, leastMiB int64)) {
	const small = 32
	f("gateway", &l.Gateway, small)
	f("message", &l.Message, small)
	f("fanout", &l.Fanout, small)
	f("group", &l.Group, small)
	f("inbox", &l.Inbox, small)
	f("push", &l.Push, small)
	f("media", &l.Media, 64)
	f("kafka", &l.Kafka, 640) // a heap of 384 MiB
	f("mysql", &l.MySQL, 768) // a buffer pool of 512 MiB
	f("redis", &l.Redis, small)
	f("s3", &l.S3, 64)
	f("provider", &l.Provider, small)
	f("generator", &l.Generator, 128)
}

func (l *Limits) fields() []field {
	var out []field
	l.each(func(role string, limit *Limit, leastMiB int64) {
		at := "limits." + role + "."
		out = append(out,
			field{path: at + "cpus", kind: kindNumber, min: 0.01, max: 1024, sparse: true, doc: "cores' worth of time of each container; left out: all", to: &limit.CPUs},
			field{path: at + "cpuset", kind: kindCPUSet, sparse: true, doc: "cores that it may run on; left out: all", to: &limit.CPUSet},
			field{path: at + "memory", kind: kindBytes, min: float64(leastMiB << 20), max: 1 << 44, sparse: true, doc: "most memory of each container; left out: all", to: &limit.MemoryBytes})
	})
	return out
}

// UsesContainers says whether something stands here that only a target in
// containers heeds.
func (s *Spec) UsesContainers() bool {
	return s.Limits != (Limits{}) || s.Infrastructure != Infrastructure{Brokers: 1, Replicas: 1}
}

// describeContainers prints what a target in containers makes of the scenario.
func (s *Spec) describeContainers(w io.Writer) {
	i := s.Infrastructure
	fmt.Fprintf(w, "\nIn containers: Kafka of %s, MySQL with a primary and %s, Redis, push provider\n", plural(i.Brokers, "broker"), plural(i.Replicas, "replica"))
	for _, l := range s.Limits.All() {
		var parts []string
		if l.CPUs > 0 {
			parts = append(parts, num(l.CPUs)+" CPUs")
		}
		if l.CPUSet != "" {
			parts = append(parts, "cores "+l.CPUSet)
		}
		if l.MemoryBytes > 0 {
			parts = append(parts, bytesText(l.MemoryBytes)+" of memory")
		}
		fmt.Fprintf(w, "  each %s is limited to %s\n", l.Role, strings.Join(parts, ", "))
	}
	if s.UsesContainers() {
		fmt.Fprintf(w, "  the other targets ignore infrastructure and limits\n")
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Never is the RestartAfter of a process that stays dead.
const Never time.Duration = -1

const never = "never"

// units of sizes in bytes, the greatest first.
func units() []struct {
	name string
	size int64
} {
	return []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}
}

// parseBytes reads a size with its unit.
func parseBytes(text string) (float64, bool) {
	for _, u := range units() {
		if digits, ok := strings.CutSuffix(text, u.name); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
			return math.Round(v * float64(u.size)), err == nil
		}
	}
	return 0, false
}

// bytesText writes a size in the greatest unit that is exact.
func bytesText(n int64) string {
	for _, u := range units() {
		if n%u.size == 0 {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	return ""
}

// isCPUSet accepts lists of cores and ranges of them, as the kernel does.
func isCPUSet(text string) bool {
	for part := range strings.SplitSeq(text, ",") {
		low, high, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(low, 10, 12)
		if err != nil {
			return false
		}
		if isRange {
			if b, err := strconv.ParseUint(high, 10, 12); err != nil || b < a {
				return false
			}
		}
	}
	return true
}
