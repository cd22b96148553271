package gateway

// pressedShare: typing and presence are given up when a queue of messages is
// filled to one part in so many.
const pressedShare = 8

// pressed reports whether the gateway is behind with messages: with sends that
// wait for a message instance, or with batches of an inbox instance that wait
// to be written. Then typing and presence are the first to go.
func (g *Gateway) pressed() bool {
	for _, l := range g.messages {
		if l.behind() {
			return true
		}
	}
	for _, l := range g.inboxes {
		if l.behind() {
			return true
		}
	}
	return false
}

func (l *messageLink) behind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) > l.g.limits.SubmitQueue/pressedShare || l.queueBytes > l.g.limits.SubmitQueueBytes/pressedShare
}

// behind: the handler takes all batches at once, so that a full channel means
// that it is not done with as many before.
func (l *inboxLink) behind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.batches != nil && len(l.batches) == cap(l.batches)
}

// shed counts an event that was given up because the gateway is pressed, and
// reports whether it is.
func (v *views) shed(kind int) bool {
	if !v.g.pressed() {
		return false
	}
	v.g.m.event(kind).shed.Inc()
	return true
}
