package system_test

import (
	"net/http"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"throng/system"
)

// samples are the metrics of one role instance as Prometheus reads them.
type samples struct {
	t        *testing.T
	families map[string]*dto.MetricFamily
}

// metrics reads the debug port of an instance.
func (d *deployment) metrics(r system.Role, i int) samples {
	d.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + d.cfg.DebugAddr(r, i) + "/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return samples{d.t, families}
}

// find returns the metrics of a family with a label, written name="value"; all
// where label is empty.
func (s samples) find(name, label string) []*dto.Metric {
	var out []*dto.Metric
	key, value, _ := strings.Cut(label, "=")
	for _, m := range s.families[name].GetMetric() {
		ok := label == ""
		for _, l := range m.Label {
			ok = ok || l.GetName() == key && `"`+l.GetValue()+`"` == value
		}
		if ok {
			out = append(out, m)
		}
	}
	return out
}

// value is the sum of what find returns: of histograms, of their counts.
func (s samples) value(name, label string) float64 {
	sum := 0.0
	for _, m := range s.find(name, label) {
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}
