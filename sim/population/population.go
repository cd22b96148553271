// Package population says who exists: users, their devices, activity and
// contacts, conversations and their members. Nothing is stored for anybody:
// everything is derived by hashing (seed, purpose, index), so that millions of
// users cost nothing until they are asked for. It is pure, has no network, no
// clock and no goroutines, and imports nothing of this module.
package population

import "math/rand/v2"

// UserID is a user's number plus one: 1..users.
type UserID = uint64

// GroupID names a group; see Conversation.
type GroupID = uint64

// Population is a population of users of one seed. Safe for concurrent use.
type Population struct {
	seed   uint64
	users  int64
	preset string
}

// Conversation is a chat of two people or of a group.
type Conversation struct {
	ID    uint64
	Group GroupID // 0: direct
	Size  int     // members, 2 for direct
}

// New returns the population of a seed: users of them, and the chat mix of a
// preset of the scenario package (A, B, C, direct).
func New(seed uint64, users int64, preset string) *Population {
	return &Population{seed: seed, users: users, preset: preset}
}

// Users is how many there are.
func (p *Population) Users() int64 { return p.users }

// Devices of a user: 1 and the linked ones; device 0 is the phone.
func (p *Population) Devices(u UserID) int { return 1 }

// Activity of a user relative to the mean.
func (p *Population) Activity(u UserID) float64 { return 1 }

// SampleByActivity draws a user with probability proportional to activity.
func (p *Population) SampleByActivity(rng *rand.Rand) UserID { return 1 }

// Contacts is how many contacts a user has.
func (p *Population) Contacts(u UserID) int { return 0 }

// Contact is the j-th contact of a user.
func (p *Population) Contact(u UserID, j int) UserID { return 1 }

// Conversation with number c, in [0, ConversationSpace).
func (p *Population) Conversation(c uint64) Conversation { return Conversation{} }

// Members of a conversation, by rank of who writes most; distinct.
func (p *Population) Members(c uint64) []UserID { return nil }

// BigGroup is the i-th group of a declared stratum of groups with size members.
func (p *Population) BigGroup(i int, size int) (GroupID, []UserID) { return 0, nil }

// GroupMembers are the members of a group of Conversation or BigGroup.
func (p *Population) GroupMembers(g GroupID) []UserID { return nil }
