package load

import (
	"time"

	"throng/sim/history"
	"throng/sim/metrics"
	"throng/sim/scenario"
)

// zoneKinds are the kinds of what devices at the gateways of one zone ask for.
type zoneKinds struct{ direct, group, change, drain metrics.Kind }

// zonesOf returns the kinds of each gateway's zone; none without zones.
func zonesOf(spec *scenario.Spec, r *metrics.Recorder, gateways int) []zoneKinds {
	if len(spec.Zones) == 0 {
		return nil
	}
	out := make([]zoneKinds, gateways)
	for i := range out {
		kind := func(what string) metrics.Kind {
			return r.Kind(history.KindZone + spec.ZoneOf("gateway", i) + "." + what)
		}
		out[i] = zoneKinds{direct: kind(history.ZoneSentDirect), group: kind(history.ZoneSentGroup), change: kind(history.ZoneChange), drain: kind(history.ZoneDrain)}
	}
	return out
}

// inZone records a latency for the zone of the gateway that the device is at.
// gate is what the device said while its lock was held.
func (e *Engine) inZone(gate int, pick func(*zoneKinds) metrics.Kind, took time.Duration) {
	if len(e.zones) > 0 {
		e.rec.Record(pick(&e.zones[gate%len(e.zones)]), took.Microseconds())
	}
}

func directOf(z *zoneKinds) metrics.Kind { return z.direct }
func groupOf(z *zoneKinds) metrics.Kind  { return z.group }
func changeOf(z *zoneKinds) metrics.Kind { return z.change }
func drainOf(z *zoneKinds) metrics.Kind  { return z.drain }
