package system

// Settings are the limits and time-outs of a deployment. Zero means the
// default of the role that uses it.
type Settings struct {
	// AckTimeout is how long a delivery to a live device may stay
	// unacknowledged before it becomes a row in the device's inbox.
	AckTimeout Duration `json:"ack_timeout,omitempty"`
	// PushDelay is how long a row waits for its device to come back before a
	// push is asked for.
	PushDelay Duration `json:"push_delay,omitempty"`
}
