package audit

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"throng/sim/history"
	"throng/system/wire"
)

// The recorded histories in testdata/histories are one event a line:
//
//	devices USER N
//	written ID SENDER group=G|user=U seq=N to=DEV,DEV... [phase=N] [stratum=N] [at=MS] [class=N]
//	online ID DEV
//	ack ID | refused ID
//	deliver DEV ID [live|drain|transition|proof] [offset=N] [at=MS] [seq=N] [from=DEV] [group=G]
//	redelivered DEV
//	outside G USER
//	changing G USER | removed G USER OFFSET | added G USER OFFSET
//	drained DEV | unprovable DEV
//	pending [DEV...]          what Pending must return at this point
//	expect NAME=N ...         what Report must say at this point; counts not named must be 0
//
// A device is user/device. What a deliver line does not say is as it was
// written. Phase 1 is gated.
func TestRecordedHistories(t *testing.T) {
	files, err := filepath.Glob("../../testdata/histories/*.txt")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d histories (%v), want at least 15", len(files), err)
	}
	for _, f := range files {
		for engines := 1; engines <= 3; engines++ { // the verdict does not depend on who told what
			t.Run(fmt.Sprintf("%s by %d", strings.TrimSuffix(filepath.Base(f), ".txt"), engines), func(t *testing.T) { replay(t, f, engines) })
		}
	}
}

type replayer struct {
	t       *testing.T
	a       *told
	devices map[uint64]int
	checks  int
}

func replay(t *testing.T, path string, engines int) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &replayer{t: t, devices: map[uint64]int{}, a: tellBy(Config{Gated: []uint8{1}}, engines, 2)}
	in := bufio.NewScanner(f)
	for n := 1; in.Scan(); n++ {
		line, _, _ := strings.Cut(in.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := p.event(words); err != nil {
			t.Fatalf("%s:%d: %v", path, n, err)
		}
	}
	if p.checks == 0 {
		t.Fatalf("%s expects nothing", path)
	}
}

func (p *replayer) event(w []string) error {
	arg := func(i int) string {
		if i < len(w) {
			return w[i]
		}
		return ""
	}
	switch w[0] {
	case "devices":
		p.devices[num(w[1])] = int(num(arg(2)))
		if p.a.cfg.Devices == nil {
			p.a.cfg.Devices = func(u uint64) int { return p.devices[u] }
		}
	case "written":
		return p.write(w)
	case "online":
		p.a.markOnline(id(arg(1)), dev(arg(2)))
	case "ack":
		p.a.handle[id(arg(1))].Acknowledged(p.a.tick())
	case "refused":
		p.a.handle[id(arg(1))].Refused()
	case "deliver":
		return p.deliver(w)
	case "redelivered":
		p.a.of(dev(arg(1)).User).Redelivered()
	case "outside":
		p.a.of(num(arg(2))).Outside(num(arg(1)), num(arg(2)))
	case "changing":
		p.a.changing(num(arg(1)), num(arg(2)))
	case "removed":
		p.a.removed(num(arg(1)), num(arg(2)), int64(num(arg(3))))
	case "added":
		p.a.added(num(arg(1)), num(arg(2)), int64(num(arg(3))))
	case "drained":
		p.a.drained(dev(arg(1)))
	case "unprovable":
		p.a.of(dev(arg(1)).User + 1).Unprovable(dev(arg(1))) // anybody may say so
	case "pending":
		p.checks++
		if got, want := fmt.Sprint(p.a.judge(p.t).Pending), fmt.Sprint(devs(strings.Join(w[1:], ","))); got != want {
			return fmt.Errorf("pending %s, want %s", got, want)
		}
	case "expect":
		p.checks++
		return p.expect(w[1:])
	default:
		return fmt.Errorf("unknown event %q", w[0])
	}
	return nil
}

func (p *replayer) write(w []string) error {
	m := Message{ID: id(w[1]), Sender: dev(w[2]), Phase: 1, Stratum: -1}
	for _, o := range w[3:] {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "group":
			m.Group = num(v)
		case "user":
			m.Peer = num(v)
		case "seq":
			m.Seq = num(v)
		case "to":
			m.Addressees = devs(v)
		case "phase":
			m.Phase = uint8(num(v))
		case "stratum":
			m.Stratum = int8(num(v))
		case "class":
			m.SizeClass = int(num(v))
		case "at":
			m.Intended = time.Duration(num(v)) * time.Millisecond
		default:
			return fmt.Errorf("unknown option %q", o)
		}
	}
	p.a.write(m)
	return nil
}

func (p *replayer) deliver(w []string) error {
	to, mid := dev(w[1]), id(w[2])
	m := p.a.msgs[mid]
	if m == nil {
		m = &Message{}
	}
	d := &wire.Deliver{MessageId: mid[:], Group: m.Group, From: m.Sender.User, FromDevice: m.Sender.Device, Seq: m.Seq}
	class, at := Live, m.Intended
	for _, o := range w[3:] {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "live":
		case "drain":
			class = Drain
		case "transition":
			class = Transition
		case "proof":
			class = Proof
		case "offset":
			d.Offset = int64(num(v))
		case "seq":
			d.Seq = num(v)
		case "from":
			d.From, d.FromDevice = dev(v).User, dev(v).Device
		case "group":
			d.Group = num(v)
		case "at":
			at = time.Duration(num(v)) * time.Millisecond
		default:
			return fmt.Errorf("unknown option %q", o)
		}
	}
	p.a.deliver(to, d, class, at)
	return nil
}

func (p *replayer) expect(words []string) error {
	r := p.a.report(p.t)
	got := counts(r)
	want := map[string]int64{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		if _, ok := got[k]; !ok {
			return fmt.Errorf("no count is called %q", k)
		}
		want[k] = int64(num(v))
	}
	for k, n := range got {
		_, named := want[k]
		if must := violation[k]; (named || must) && n != want[k] {
			return fmt.Errorf("%s is %d, want %d; examples:\n%s", k, n, want[k], strings.Join(r.Examples, "\n"))
		}
	}
	bad := r.Lost + r.Duplicated + r.Reordered + r.Foreign + r.Unproved
	if (bad > 0) != (len(r.Examples) > 0) {
		return fmt.Errorf("%d violations and %d examples", bad, len(r.Examples))
	}
	return nil
}

// violation names the counts that must be zero unless an expect line says else.
var violation = map[string]bool{"lost": true, "duplicated": true, "reordered": true, "foreign": true, "unproved": true}

func counts(r history.Audit) map[string]int64 {
	return map[string]int64{
		"sends": r.Sends, "acknowledged": r.Acknowledged, "unanswered": r.Unanswered, "expected": r.Expected, "proved": r.Proved,
		"lost": r.Lost, "duplicated": r.Duplicated, "reordered": r.Reordered, "foreign": r.Foreign, "unproved": r.Unproved,
		"redelivered": r.Redelivered, "live": r.Live, "drain": r.Drain, "transition": r.Transition, "proof": r.Proof,
		"fanout_sends": r.FanoutSends, "fanout_recipients": r.FanoutRecipients, "offline": r.OfflinePairs, "pairs": r.AllPairs,
	}
}

func id(name string) wire.MessageID { h := sha256.Sum256([]byte(name)); return wire.MessageID(h[:16]) }

func num(s string) uint64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return uint64(n)
}

func dev(s string) Device {
	u, d, _ := strings.Cut(s, "/")
	return Device{num(u), uint32(num(d))}
}

func devs(s string) []Device {
	all := []Device{}
	for p := range strings.SplitSeq(s, ",") {
		if p != "" {
			all = append(all, dev(p))
		}
	}
	return all
}
