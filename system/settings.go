package system

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"throng/system/internal/limit"
)

// Settings are the limits and time-outs of a deployment that an operator may
// want to change. Zero means the default of the role that uses it, which is
// given in brackets; limits that are not here are constants of the roles.
type Settings struct {
	// AckTimeout is how long a delivery to a live device may stay
	// unacknowledged before it becomes a row in the device's inbox. [2 s]
	AckTimeout Duration `json:"ack_timeout,omitempty"`
	// DeviceInFlight bounds the unacknowledged deliveries to a device; above it
	// messages become rows. [256]
	DeviceInFlight int `json:"device_in_flight,omitempty"`
	// DeviceRows is the number of rows in a device's inbox at which direct
	// messages to it are refused. [10,000]
	DeviceRows int `json:"device_rows,omitempty"`
	// InboxExpiry is how long a row is kept. [30 days]
	InboxExpiry Duration `json:"inbox_expiry,omitempty"`

	// PushDelay is how long a row waits for its device to come back before a
	// push is asked for. [1 s]
	PushDelay Duration `json:"push_delay,omitempty"`
	// PushEvery is the least time between two pushes to a device that stays away;
	// what comes in between goes with the next one. FCM lets a device have 20
	// collapsible messages at once and one more every 3 minutes, and phones lower
	// the sound of what follows a notification for up to 2 minutes. [60 s]
	PushEvery Duration `json:"push_every,omitempty"`
	// PushQuotaPerMinute is what the provider allows the deployment; its push
	// instances share it equally. [600,000, the default of an FCM project]
	PushQuotaPerMinute int `json:"push_quota_per_minute,omitempty"`
	// PushAttempts is how often a push is tried before it is a dead letter; being
	// told to wait by a 429 is no attempt. [6]
	PushAttempts int `json:"push_attempts,omitempty"`

	// DeadLetterBytes and DeadLetterAge bound what a push instance keeps of the
	// pushes that were given up. [64 MiB, 30 days]
	DeadLetterBytes int64    `json:"dead_letter_bytes,omitempty"`
	DeadLetterAge   Duration `json:"dead_letter_age,omitempty"`

	// MaxConnections of each gateway. [250,000]
	MaxConnections int `json:"max_connections,omitempty"`
	// FramesPerSecond and FrameBurst bound what one connection sends. [200, 1,000]
	FramesPerSecond int `json:"frames_per_second,omitempty"`
	FrameBurst      int `json:"frame_burst,omitempty"`
	// AddressConnections bounds the WebSockets and sockets of one client address at
	// each gateway, AddressConnectsPerSecond the new ones (after AddressConnectBurst
	// at once), AddressFailuresPerSecond the tokens refused (after
	// AddressFailureBurst); above, the answer is 429 with Retry-After. Of IPv6 a /64
	// is one address. Providers have many people behind one address, so these are
	// wide. -1: no such limit. [4,096; 200 after 4,096; 20 after 200]
	AddressConnections       int `json:"address_connections,omitempty"`
	AddressConnectsPerSecond int `json:"address_connects_per_second,omitempty"`
	AddressConnectBurst      int `json:"address_connect_burst,omitempty"`
	AddressFailuresPerSecond int `json:"address_failures_per_second,omitempty"`
	AddressFailureBurst      int `json:"address_failure_burst,omitempty"`
	// ExemptAddresses are addresses and networks (10.0.0.0/8) that the limits by
	// address do not count, at gateways and media services: a load generator is as
	// many people as it plays, at one address. "none" exempts nobody.
	// [127.0.0.0/8, ::1]
	ExemptAddresses []string `json:"exempt_addresses,omitempty"`
	// TrustedProxies are the addresses and networks of the load balancers in front.
	// Who comes from there has the address that X-Forwarded-For ends with, which
	// nobody else is believed. [none]
	TrustedProxies []string `json:"trusted_proxies,omitempty"`
	// UserConnections bounds the WebSockets of one user at each gateway. A device
	// that has lost its connection may have two for a moment. [16]
	UserConnections int `json:"user_connections,omitempty"`
	// UserSendsPerSecond (after UserSendBurst at once) and UserBytesPerSecond (after
	// UserByteBurst) bound what one user sends at each gateway, on all devices. Above,
	// a send is answered with CODE_RATE_LIMITED and retry_after_ms, and who goes on
	// until twice UserByteBurst is closed. -1: no such limit. [50 after 500;
	// 512 KiB/s after 8 MiB]
	UserSendsPerSecond int `json:"user_sends_per_second,omitempty"`
	UserSendBurst      int `json:"user_send_burst,omitempty"`
	UserBytesPerSecond int `json:"user_bytes_per_second,omitempty"`
	UserByteBurst      int `json:"user_byte_burst,omitempty"`
	// UserGroupsPerHour is how many groups one user may make at once, and in an hour on
	// average. -1: no such limit. [100]
	UserGroupsPerHour int `json:"user_groups_per_hour,omitempty"`
	// HandshakeTimeout is how long a client may take for its upgrade request. [5 s]
	HandshakeTimeout Duration `json:"handshake_timeout,omitempty"`
	// IdleTimeout closes a connection that has sent nothing for so long. IOS and
	// Android are for clients that say that they are. [75 s, 180 s, 900 s]
	IdleTimeout        Duration `json:"idle_timeout,omitempty"`
	IdleTimeoutIOS     Duration `json:"idle_timeout_ios,omitempty"`
	IdleTimeoutAndroid Duration `json:"idle_timeout_android,omitempty"`
	// DrainTimeout is how long a stopping gateway waits for clients to leave,
	// DrainJitter what it tells them to spread over. [5 s, 3 s]
	DrainTimeout Duration `json:"drain_timeout,omitempty"`
	DrainJitter  Duration `json:"drain_jitter,omitempty"`
	// AllowedOrigins are the Origins that browsers may connect from. [the
	// gateway's own]
	AllowedOrigins []string `json:"allowed_origins,omitempty"`
	// StampEvery: one in so many sends is stamped at each stage of its way, so
	// that its receiver can tell where the time went; below 0 none is. [16]
	StampEvery int `json:"stamp_every,omitempty"`
	// LeaseTTL is how long the session registry believes a gateway that has
	// stopped renewing its lease. [6 s]
	LeaseTTL Duration `json:"lease_ttl,omitempty"`

	// ReplicaMaxLag is how far a replica of the group store may be behind its
	// primary and still be read from. [5 s]
	ReplicaMaxLag Duration `json:"replica_max_lag,omitempty"`

	// FanoutInFlight bounds the records of a partition that are being
	// delivered. [512]
	FanoutInFlight int `json:"fanout_in_flight,omitempty"`

	// What the media service allows: bytes of one object by kind, and what one user
	// may have stored at a time. [16 MiB, 16 MiB, 64 MiB, 100 MiB; 2 GiB in 10,000]
	MediaImageBytes  int64 `json:"media_image_bytes,omitempty"`
	MediaVoiceBytes  int64 `json:"media_voice_bytes,omitempty"`
	MediaVideoBytes  int64 `json:"media_video_bytes,omitempty"`
	MediaOtherBytes  int64 `json:"media_other_bytes,omitempty"`
	MediaUserBytes   int64 `json:"media_user_bytes,omitempty"`
	MediaUserObjects int   `json:"media_user_objects,omitempty"`
	// MediaExpiry is how long what not all addressees have fetched is kept,
	// MediaFetchedGrace how long what all have, for their other devices, and
	// MediaUploadExpiry how long an upload may be unfinished. [30 days, 24 h, 24 h]
	MediaExpiry       Duration `json:"media_expiry,omitempty"`
	MediaFetchedGrace Duration `json:"media_fetched_grace,omitempty"`
	MediaUploadExpiry Duration `json:"media_upload_expiry,omitempty"`
	// MediaLinkTTL is how long a signed URL can be used. [5 min]
	MediaLinkTTL Duration `json:"media_link_ttl,omitempty"`
	// MediaMinFree is the free space of the blob store, in bytes, below which uploads
	// are refused; S3 does not tell, and refuses by itself. [256 MiB]
	MediaMinFree int64 `json:"media_min_free,omitempty"`
	// MediaSweepEvery is how often the media service looks for what has expired. [1 min]
	MediaSweepEvery Duration `json:"media_sweep_every,omitempty"`
	// MediaConnections of each media instance, and MediaAddressConnections from one
	// address; above either the newest is closed. [8,192, 2,048]
	MediaConnections        int `json:"media_connections,omitempty"`
	MediaAddressConnections int `json:"media_address_connections,omitempty"`
	// MediaUserBytesPerSecond and MediaAddressBytesPerSecond are what one user and one
	// address (of IPv6, a /64) may send and fetch on average, after so many bytes at
	// once; above, a request is answered 429 with Retry-After. -1: no such limit.
	// [4 MiB/s after 1 GiB, 64 MiB/s after 8 GiB]
	MediaUserBytesPerSecond    int64 `json:"media_user_bytes_per_second,omitempty"`
	MediaUserByteBurst         int64 `json:"media_user_byte_burst,omitempty"`
	MediaAddressBytesPerSecond int64 `json:"media_address_bytes_per_second,omitempty"`
	MediaAddressByteBurst      int64 `json:"media_address_byte_burst,omitempty"`
	// MediaTimeout closes a media connection whose client is silent in the middle of
	// a request. [10 s]
	MediaTimeout Duration `json:"media_timeout,omitempty"`
}

// exemptNobody is the value of Settings.ExemptAddresses for none at all.
const exemptNobody = "none"

// sources returns whose address the limits by address count.
func (s *Settings) sources() (of limit.Sources, err error) {
	if of.Proxies, err = limit.ParsePrefixes(s.TrustedProxies); err != nil {
		return of, fmt.Errorf("trusted_proxies: %w", err)
	}
	exempt := s.ExemptAddresses
	switch {
	case len(exempt) == 0:
		of.Exempt = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	case !slices.Equal(exempt, []string{exemptNobody}):
		if of.Exempt, err = limit.ParsePrefixes(exempt); err != nil {
			return of, fmt.Errorf("exempt_addresses: %w; only %q alone stands for nobody", err, exemptNobody)
		}
	}
	return of, nil
}

// unlimited are the settings that may be -1, and stamp_every, of which that is off.
func unlimited(name string) bool {
	return name == "stamp_every" || strings.HasPrefix(name, "address_") || strings.HasPrefix(name, "user_") || strings.HasSuffix(name, "_bytes_per_second")
}

// check finds numbers below what they can be, and addresses that are none.
func (s *Settings) check(bad func(field, format string, args ...any)) {
	for f, v := range reflect.ValueOf(s).Elem().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case !v.CanInt() || v.Int() >= 0:
		case !unlimited(name):
			bad("settings."+name, "%d is negative", v.Int())
		case v.Int() < -1:
			bad("settings."+name, "%d: -1 is no limit, and nothing below", v.Int())
		}
	}
	if _, err := s.sources(); err != nil {
		bad("settings", "%w", err)
	}
}
