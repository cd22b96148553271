// Package placement holds the pure decisions about where things live: the
// inbox shard of a user, the partition of a group, the instance that serves a
// user. Every process of a deployment, and the twin of it, must decide alike,
// so the functions are deterministic, have no I/O and read no clock. It
// imports nothing of this module.
package placement

// InboxShards is the number of inbox shards of a deployment. It is fixed for
// life: an inbox row is found by hashing its user into this many shards, and
// shards, not users, move between inbox instances.
const InboxShards = 64

// InboxShard returns the inbox shard of a user, in [0, InboxShards).
func InboxShard(user uint64) int { return int(mix(user) % InboxShards) }

// InboxInstance returns which of n inbox instances owns a shard.
func InboxInstance(shard, n int) int { return shard % n }

// UserInboxInstance returns which of n inbox instances owns a user's shard.
func UserInboxInstance(user uint64, n int) int { return InboxInstance(InboxShard(user), n) }

// GroupPartition returns the Kafka partition of a group among n. n is fixed
// for the life of a topic: the order of a group's messages is its partition's.
func GroupPartition(group uint64, n int) int { return int(mix(group^0x9e3779b97f4a7c15) % uint64(n)) }

// MessageInstance returns which of n message instances accepts the sends of a
// user. All sends of one device pass one instance, which keeps them in order.
func MessageInstance(user uint64, n int) int { return int(mix(user^0xc2b2ae3d27d4eb4f) % uint64(n)) }

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): users
// and groups are often numbered densely, and must spread all the same.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	return x ^ (x >> 31)
}

// GroupInstance returns which of n group instances looks after a group: its
// changes pass there, and there its members are cached. Any other instance can
// answer for it.
func GroupInstance(group uint64, n int) int { return int(mix(group^0xd6e8feb86659fd93) % uint64(n)) }
