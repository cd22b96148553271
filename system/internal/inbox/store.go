package inbox

import (
	"context"
	"errors"
)

// ErrFenced is what Store.Commit wraps when another process has claimed the
// shards: this one must not write, or answer, any more.
var ErrFenced = errors.New("inbox: the shards have a new owner")

// ErrOtherShards is what Store.Claim wraps when what is stored belongs to
// another set of shards (the number of instances or loops was changed).
var ErrOtherShards = errors.New("inbox: the store holds other shards")

// Store is where the mailboxes of one loop's shards are kept. One goroutine
// calls it; an error of any method other than ErrFenced and ErrOtherShards
// means that the outcome is not known.
type Store interface {
	// Claim makes the caller the owner of shards and returns its incarnation,
	// which is above every earlier one of these shards and at least atLeast,
	// with the number of rows stored. ErrOtherShards.
	Claim(ctx context.Context, shards []int, atLeast uint64) (incarnation uint64, rows int, err error)
	// Load returns the devices of those users that exist.
	Load(ctx context.Context, users []uint64) ([]DeviceState, error)
	// Commit does all of b in one transaction, fenced by b.Incarnation, then reads b.Pages and
	// b.TakeReceipts, which see the writes. ErrFenced.
	Commit(ctx context.Context, b *Batch) (Result, error)
	// Scan returns rows with a seq above after in the order of seq, at most
	// limit, without bodies.
	Scan(ctx context.Context, after uint64, limit int) ([]ScanRow, error)
}

// Key names a mailbox.
type Key struct {
	User   uint64
	Device uint32
}

// DeviceState is what the store knows of a device.
type DeviceState struct {
	Key
	Token string
	// Pushed: a push for rows up to this seq was accepted (or given up).
	Pushed uint64
	// Rows in the inbox, and the lowest and the highest seq.
	Rows           int
	Oldest, Newest uint64
	// Receipts are waiting for this device.
	Receipts bool
	// HideLastSeen is the user's, the same for all devices.
	HideLastSeen bool
}

// Privacy records what others may see of a user.
type Privacy struct {
	User         uint64
	HideLastSeen bool
}

// Row is a message in the inbox of a device. Seq is unique and increasing in a
// loop, so it increases for each device; it is never used again.
type Row struct {
	Key
	Shard   int // not read back
	Seq     uint64
	Message [16]byte
	// Body is an encoded Deliver without inbox_seq; empty when the row points
	// to BodyID instead. A row that is read has its body either way.
	Body   []byte
	BodyID uint64
	At     int64 // Unix seconds
}

// Body is a message that several rows point to. The store counts them, and
// deletes the body with the last one. A body may come again, with more rows.
type Body struct {
	ID   uint64
	Data []byte
	Refs int // rows of this batch that point to it
}

// UpTo says to delete the rows of a device up to a seq.
type UpTo struct {
	Key
	Seq uint64
}

// Pushed records that a push covers rows up to Seq.
type Pushed struct {
	Key
	Seq uint64
}

// Registration creates a device, or changes its token.
type Registration struct {
	Key
	Token string
}

// Mark is a receipt watermark for a device of a sender. With Peer 0 it is of
// all members of Group.
type Mark struct {
	Key
	Group, Peer     uint64
	Delivered, Read uint64
	// Ledger is what the device has sent to Group and which members have it, the
	// core's to read. Empty: there is none, or it stays as it is.
	Ledger []byte
}

// Page asks for rows of a device in the order of seq: those of Seqs that exist,
// or where that is empty the oldest Limit.
type Page struct {
	Key
	Limit int
	// All: there are no more than Limit.
	All bool
	// Ahead: the seqs of so many rows after the oldest Limit are wanted too.
	Ahead int
	Seqs  []uint64
	// Oldest: no row of the device has a lower seq. 0 is always true.
	Oldest uint64
}

// Batch is one transaction (or, when it holds nothing but Pages, plain reads), done in the order of its fields. Rows with a
// (device, message) that is present already are left out: an append that is
// repeated is stored once.
type Batch struct {
	Incarnation uint64
	Register    []Registration
	Bodies      []Body
	Rows        []Row
	Delete      []uint64 // seqs of rows that hold their body
	DeletePtr   []uint64 // seqs of rows that point to a body
	DeleteUpTo  []UpTo
	Pushed      []Pushed
	DeadTokens  []Registration // the token is removed if it is still this one
	Privacy     []Privacy
	Marks       []Mark // merged by maximum; a Ledger replaces an older one
	Pages       []Page
	ExpireMarks int64 // marks not changed since then (Unix seconds) are deleted; 0: none
	Now         int64 // Unix seconds
	// TakeReceipts are the devices whose marks are read; their watermarks become
	// 0, and marks without a Ledger are deleted.
	TakeReceipts []Key
}

// ReadOnly reports whether b is nothing but pages to read.
func (b *Batch) ReadOnly() bool { return len(b.Pages) > 0 && b.Empty() }

// Empty reports whether b holds nothing, or nothing but pages to read.
func (b *Batch) Empty() bool {
	return len(b.TakeReceipts)+len(b.Register)+len(b.Bodies)+len(b.Rows)+len(b.Delete)+len(b.DeletePtr)+
		len(b.DeleteUpTo)+len(b.Pushed)+len(b.DeadTokens)+len(b.Privacy)+len(b.Marks) == 0 && b.ExpireMarks == 0
}

// Result is what Commit did and read. Pages, Ahead and Receipts are parallel to
// the requests.
type Result struct {
	Inserted, Deleted int
	Pages             [][]Row
	Ahead             [][]uint64
	Receipts          [][]Mark
}

// ScanRow is a row without its body.
type ScanRow struct {
	Key
	Seq     uint64
	Message [16]byte
	BodyID  uint64
	At      int64 // Unix seconds
}
