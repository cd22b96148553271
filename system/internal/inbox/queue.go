package inbox

// entry is a delivery that is not acknowledged.
type entry struct {
	msg  *Message
	item *Item // waits for the acknowledgement; nil when a row holds the message
	seq  uint64
	body uint64 // what the row points to
	at   int64
}

// queue is a FIFO that reuses its slice.
type queue struct {
	e    []entry
	head int
}

func (q *queue) len() int      { return len(q.e) - q.head }
func (q *queue) first() *entry { return &q.e[q.head] }
func (q *queue) push(e entry) {
	if q.head > 0 && len(q.e) == cap(q.e) {
		n := copy(q.e, q.e[q.head:])
		clear(q.e[n:])
		q.e, q.head = q.e[:n], 0
	}
	q.e = append(q.e, e)
}
func (q *queue) pop() entry {
	e := q.e[q.head]
	q.e[q.head] = entry{}
	q.head++
	if q.head == len(q.e) {
		q.e, q.head = q.e[:0], 0
		if cap(q.e) > 32 {
			q.e = nil // an idle session keeps little memory
		}
	}
	return e
}
