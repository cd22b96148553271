package target

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/segmentio/kafka-go"

	"throng/sim/history"
)

// Bounds of the requests to debug ports.
const (
	probeTimeout  = 2 * time.Second
	scrapeTimeout = 3 * time.Second
	maxErrorBody  = 4 << 10
)

func (e *Embedded) probeHTTP(ctx context.Context, url string) error {
	return ProbeHTTP(ctx, e.http, url)
}

// ProbeHTTP returns nil when url answers 200, else what it says.
func ProbeHTTP(ctx context.Context, c *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// probeKafka asks the broker for the partitions of the topic.
func probeKafka(ctx context.Context, broker, topic string, partitions int) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := kafka.DialContext(ctx, "tcp", broker)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return err
	}
	found, err := conn.ReadPartitions(topic)
	if err != nil {
		return err
	}
	if len(found) != partitions {
		return fmt.Errorf("topic %s has %d partitions, not %d", topic, len(found), partitions)
	}
	return nil
}

// usage returns what the process has used over all its incarnations; memory
// and threads are those of the running one, 0 while there is none.
func (c *child) usage() (usage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := usage{cpu: c.usedCPU}
	if c.cmd != nil {
		u, err := readUsage(c.cmd.Process.Pid)
		if err != nil {
			if c.cmd.Process.Signal(syscall.Signal(0)) == nil {
				return usage{}, err
			}
			u = usage{} // it has ended this instant
		}
		total.cpu += u.cpu
		total.rss, total.threads = u.rss, u.threads
	}
	// The process can have ended, and not be accounted for yet: never let the
	// sum step back.
	total.cpu = max(total.cpu, c.reportedCPU)
	c.reportedCPU = total.cpu
	return total, nil
}

// Sample returns CPU and memory of every process, the harness included.
func (e *Embedded) Sample() ([]history.RoleSample, error) {
	own, err := OwnSample()
	if err != nil {
		return nil, err
	}
	samples := []history.RoleSample{own}
	for _, c := range e.children {
		u, err := c.usage()
		if err != nil {
			return nil, fmt.Errorf("target: sample %s: %w", c.name(), err)
		}
		samples = append(samples, history.RoleSample{Role: c.role, Instance: c.instance,
			CPUSeconds: u.cpu.Seconds(), RSSBytes: u.rss, Threads: u.threads})
	}
	return samples, nil
}

// OwnSample is the CPU and memory of this process, the generator.
func OwnSample() (history.RoleSample, error) {
	own, err := readUsage(os.Getpid())
	if err != nil {
		return history.RoleSample{}, err
	}
	return history.RoleSample{Role: roleGenerator, CPUSeconds: own.cpu.Seconds(), RSSBytes: own.rss, Threads: own.threads}, nil
}

// Scrape reads /metrics of every role at once.
func (e *Embedded) Scrape(ctx context.Context) ([]history.CounterSample, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	var mu sync.Mutex
	var samples []history.CounterSample
	var wg sync.WaitGroup
	for _, c := range e.children {
		if c.debug == "" || c.pid() == 0 {
			continue
		}
		wg.Go(func() {
			c.mu.Lock()
			restart := c.restarts
			c.mu.Unlock()
			values, err := ScrapeMetrics(ctx, e.http, c.debug)
			if err != nil {
				return // it is down or just starting: there is nothing to say about it
			}
			mu.Lock()
			defer mu.Unlock()
			samples = append(samples, history.CounterSample{Role: c.role, Instance: c.instance, Restart: restart, Values: values})
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil && len(samples) == 0 {
		return nil, fmt.Errorf("target: scrape: %w", err)
	}
	return samples, nil
}

// ScrapeMetrics returns the metrics of one debug port that a report uses: all of
// throng_ but histograms, the counters of process_ except process_network_*,
// which count the whole machine, and the goroutines and live heap of go_.
func ScrapeMetrics(ctx context.Context, c *http.Client, addr string) (map[string]float64, error) {
	return ScrapeURL(ctx, c, "http://"+addr+"/metrics")
}

// ScrapeURL is ScrapeMetrics for any endpoint. It returns the metrics named
// also as well.
func ScrapeURL(ctx context.Context, c *http.Client, url string, also ...string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("target: scrape %s: %w", url, err)
	}
	req.Header.Set("Accept-Encoding", "identity") // else compression is a part of what the role is seen to need
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("target: scrape: %w", err) // names the URL
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("target: scrape %s: %s", url, resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("target: scrape %s: %w", url, err)
	}
	return readFamilies(families, also), nil
}

func readFamilies(families map[string]*dto.MetricFamily, also []string) map[string]float64 {
	values := map[string]float64{}
	also = append(also, history.GaugeGoroutines, history.GaugeLiveHeap)
	for name, f := range families {
		process := strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "process_network_") &&
			f.GetType() == dto.MetricType_COUNTER
		if !process && !strings.HasPrefix(name, "throng_") && !slices.Contains(also, name) {
			continue
		}
		for _, m := range f.Metric {
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				values[folded(name, m.Label)] = m.Counter.GetValue()
			case dto.MetricType_GAUGE:
				values[folded(name, m.Label)] = m.Gauge.GetValue()
			}
		}
	}
	return values
}

// folded returns name{k="v",...}, labels in the order of their names, which is
// the order in which they are exposed.
func folded(name string, labels []*dto.LabelPair) string {
	if len(labels) == 0 {
		return name
	}
	var b strings.Builder
	b.WriteString(name)
	for i, l := range labels {
		b.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(&b, "%s=%q", l.GetName(), l.GetValue())
	}
	b.WriteByte('}')
	return b.String()
}
