package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"throng/sim/history"
)

// control serves, on a socket in the run's folder, what a generator that runs
// in a container cannot do from there: kill, restart and measure containers.
//
//	GET  /state?events=N   state, with the events from the N-th on
//	POST /kill?role=R&instance=I
//	POST /restart?role=R&instance=I
//	POST /flush?role=R&instance=I   the number of keys
type control struct {
	server *http.Server
	done   chan struct{}
}

// state is what the generator asks for each second.
type state struct {
	Roles    []history.RoleInstance `json:"roles"`
	Samples  []history.RoleSample   `json:"samples"`
	Restarts map[string]int         `json:"restarts"` // by role/instance
	Events   []history.Event        `json:"events"`
}

func controlPath(dir string) string { return filepath.Join(dir, "control.sock") }

func startControl(d *Deployment) (*control, error) {
	ln, err := net.Listen("unix", controlPath(d.work.path))
	if err != nil {
		return nil, fmt.Errorf("containers: control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) {
		from, err := strconv.Atoi(r.URL.Query().Get("events"))
		if err != nil {
			http.Error(w, "events: a number is needed", http.StatusBadRequest)
			return
		}
		s, err := d.state(from)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s) // the reader may be gone
	})
	act := func(f func(w io.Writer, role string, instance int) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			instance, err := strconv.Atoi(r.URL.Query().Get("instance"))
			if err == nil {
				err = f(w, r.URL.Query().Get("role"), instance)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		}
	}
	mux.HandleFunc("POST /kill", act(func(_ io.Writer, role string, instance int) error { return d.Kill(role, instance) }))
	mux.HandleFunc("POST /restart", act(func(_ io.Writer, role string, instance int) error { return d.Restart(role, instance) }))
	mux.HandleFunc("POST /flush", act(func(w io.Writer, role string, instance int) error {
		keys, err := d.Flush(role, instance)
		if err == nil {
			fmt.Fprint(w, keys)
		}
		return err
	}))
	c := &control{server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_ = c.server.Serve(ln) // until close
	}()
	return c, nil
}

func (c *control) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	err := c.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, c.server.Close())
	}
	<-c.done
	if err != nil {
		return fmt.Errorf("containers: control socket: %w", err)
	}
	return nil
}

func (d *Deployment) state(from int) (*state, error) {
	samples, err := d.Sample()
	if err != nil {
		return nil, err
	}
	s := &state{Roles: d.Roles(), Samples: samples, Restarts: d.restarts()}
	d.mu.Lock()
	defer d.mu.Unlock()
	if from >= 0 && from < len(d.events) {
		s.Events = append(s.Events, d.events[from:]...)
	}
	return s, nil
}

// Attachment is what a generator on the network is told about the deployment:
// the content of the file that RunGenerator writes and Attach reads.
type Attachment struct {
	Target   string            `json:"target"`           // name of the kind of target
	Gateways []string          `json:"gateways"`         // ws://host:port
	Medias   []string          `json:"medias,omitempty"` // http://host:port
	Admin    string            `json:"admin"`            // http://host:port of a group instance
	Provider string            `json:"provider"`
	Key      string            `json:"key"` // base64
	Debug    []debugPort       `json:"debug"`
	Control  string            `json:"control"` // path of the socket
	Versions map[string]string `json:"versions"`
}

// attachment describes the deployment as the containers see it.
func (d *Deployment) attachment() *Attachment {
	a := &Attachment{Target: d.Name(), Admin: "http://" + d.sys.Groups[0].HTTP, Provider: d.sys.Provider.URL, Key: d.sys.Key,
		Control: controlPath(d.work.path), Versions: d.Versions()}
	for _, m := range d.sys.Medias {
		a.Medias = append(a.Medias, "http://"+m.Listen)
	}
	for _, g := range d.sys.Gateways {
		a.Gateways = append(a.Gateways, "ws://"+g.Listen)
	}
	for _, m := range d.members {
		if _, ok := m.published[portDebug]; ok {
			a.Debug = append(a.Debug, debugPort{m.role, m.instance, m.host() + ":" + portDebug})
		}
	}
	return a
}

func (d *Deployment) writeAttachment() (string, error) {
	data, err := json.MarshalIndent(d.attachment(), "", "  ")
	if err != nil {
		return "", fmt.Errorf("containers: attachment: %w", err)
	}
	path := filepath.Join(d.work.path, "target.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", fmt.Errorf("containers: attachment: %w", err)
	}
	return path, nil
}
