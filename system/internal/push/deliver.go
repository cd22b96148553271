package push

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"throng/system/internal/rpc"
)

// maxRetryAfter bounds how long the provider can make this instance wait.
const maxRetryAfter = time.Minute

// notification is the body of a request to the provider.
type notification struct {
	CollapseKey string `json:"collapse_key"`
	MessageID   string `json:"message_id"` // hex
	Waiting     uint32 `json:"waiting"`
	User        uint64 `json:"user,string"` // more than a JavaScript number holds
	Device      uint32 `json:"device"`
}

// verdict is what one attempt came to.
type verdict int

const (
	accepted verdict = iota
	deadToken
	refused   // a fault of the request: no use to try again
	throttled // wait as told
	failed    // try again
)

func (v verdict) String() string {
	return [...]string{"accepted", "dead_token", "refused", "throttled", "failed"}[v]
}

// work carries out requests until ctx is done.
func (p *Push) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-p.queue:
			p.m.queue.Depth.Dec()
			if outcome := p.deliver(ctx, j); outcome != rpc.PushOutcome_PUSH_OUTCOME_UNSPECIFIED && j.answer(outcome) {
				p.m.seconds.Observe(time.Since(j.at).Seconds())
			}
		}
	}
}

// deliver tries until there is an outcome. Unspecified: ctx is done, or nobody
// wants the push any more.
func (p *Push) deliver(ctx context.Context, j *job) rpc.PushOutcome {
	if j.ctx.Err() != nil {
		return rpc.PushOutcome_PUSH_OUTCOME_UNSPECIFIED
	}
	body, err := json.Marshal(notification{CollapseKey: j.req.CollapseKey, MessageID: hex.EncodeToString(j.req.MessageId),
		Waiting: j.req.Waiting, User: j.req.User, Device: j.req.Device})
	if err != nil {
		p.deadLetter(j, err.Error())
		return rpc.PushOutcome_PUSH_OUTCOME_DEAD_LETTER
	}
	target := p.target(j.req.Token)
	for attempt := 1; ; {
		if !p.bucket.take(j.ctx) || !j.wanted() {
			return rpc.PushOutcome_PUSH_OUTCOME_UNSPECIFIED
		}
		began := time.Now()
		v, after, reason := p.attempt(ctx, target, body)
		if ctx.Err() != nil {
			return rpc.PushOutcome_PUSH_OUTCOME_UNSPECIFIED
		}
		p.m.attempt.Done(time.Since(began), v != accepted && v != deadToken)
		p.m.attempts.WithLabelValues(v.String()).Inc()
		switch v {
		case accepted:
			p.m.accepted.Inc()
			return rpc.PushOutcome_PUSH_OUTCOME_ACCEPTED
		case deadToken:
			p.m.dead.Inc()
			return rpc.PushOutcome_PUSH_OUTCOME_DEAD_TOKEN
		case throttled:
			// It holds for all of us: nobody asks before.
			p.m.throttled.Inc()
			p.bucket.hold(after)
			continue
		case failed:
			if attempt < p.cfg.Attempts {
				sleep(j.ctx, max(after, p.backoff(attempt)))
				attempt++
				continue
			}
		}
		p.deadLetter(j, reason)
		return rpc.PushOutcome_PUSH_OUTCOME_DEAD_LETTER
	}
}

// target returns where the pushes of a device go.
func (p *Push) target(token string) *url.URL {
	u := *p.url
	u.Path += "/v1/devices/" + token
	u.RawPath = p.url.EscapedPath() + "/v1/devices/" + url.PathEscape(token)
	return &u
}

// attempt makes one request. after is how long the provider says to wait.
func (p *Push) attempt(ctx context.Context, target *url.URL, body []byte) (v verdict, after time.Duration, reason string) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	req := &http.Request{Method: http.MethodPost, URL: target, Host: target.Host, Header: p.header, ContentLength: int64(len(body)),
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }}
	req.Body, _ = req.GetBody() // never fails
	resp, err := p.client.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return failed, 0, err.Error()
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // lets the stream end in order
	reason = fmt.Sprintf("the provider answered %d", resp.StatusCode)
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		return accepted, 0, ""
	case code == http.StatusGone:
		return deadToken, 0, reason
	case code == http.StatusTooManyRequests:
		return throttled, retryAfter(resp.Header.Get("Retry-After"), time.Now()), reason
	case code >= 500 || code == http.StatusRequestTimeout:
		if h := resp.Header.Get("Retry-After"); h != "" {
			after = retryAfter(h, time.Now())
		}
		return failed, after, reason
	default:
		return refused, 0, reason
	}
}

// retryAfter reads the header: seconds, or a date. What is missing or not
// understood is one second.
func retryAfter(h string, now time.Time) time.Duration {
	d := time.Second
	if s, err := strconv.ParseFloat(h, 64); err == nil && s >= 0 {
		d = time.Duration(min(s, maxRetryAfter.Seconds()) * float64(time.Second))
	} else if at, err := http.ParseTime(h); err == nil {
		d = max(at.Sub(now), 0)
	}
	return min(d, maxRetryAfter)
}

// backoff is the wait before a retry: uniformly between nothing and a bound
// that doubles (full jitter), so that what failed together does not come
// together.
func (p *Push) backoff(attempt int) time.Duration {
	bound := p.cfg.MaxBackoff
	if attempt < 20 {
		bound = min(bound, p.cfg.Backoff<<(attempt-1))
	}
	return rand.N(bound + 1)
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// bucket is a token bucket that can be held shut.
type bucket struct {
	gap time.Duration // between two tokens; 0: no bound

	mu   sync.Mutex
	free time.Time // when the next token is free; up to burst in the past
	shut time.Time // nobody passes before
}

// burst is how many tokens gather in quiet times, as a span of time.
const burst = time.Second

func newBucket(perMinute int) *bucket {
	b := new(bucket)
	if perMinute > 0 {
		b.gap = time.Minute / time.Duration(perMinute)
	}
	return b
}

// take waits for a token; false: ctx was done first.
func (b *bucket) take(ctx context.Context) bool {
	sleep(ctx, b.reserve(time.Now()))
	for wait := b.closed(); wait > 0 && ctx.Err() == nil; wait = b.closed() {
		sleep(ctx, wait)
	}
	return ctx.Err() == nil
}

// reserve takes the next token and returns how long to wait for it.
func (b *bucket) reserve(now time.Time) time.Duration {
	if b.gap == 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free.Before(now.Add(-burst)) {
		b.free = now.Add(-burst)
	}
	b.free = b.free.Add(b.gap)
	return b.free.Sub(now)
}

// closed returns how long to wait until the bucket is open, up to an eighth
// more: those who wait do not come all at once. Not above 0: it is open.
func (b *bucket) closed() time.Duration {
	b.mu.Lock()
	wait := time.Until(b.shut)
	b.mu.Unlock()
	if wait > 0 {
		wait += rand.N(wait/8 + 1)
	}
	return wait
}

// hold lets nobody pass for d.
func (b *bucket) hold(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until := time.Now().Add(d); until.After(b.shut) {
		b.shut = until
	}
}
