package crew

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// streamName of what agents send: results and spools. It is kept on disk until
// the leader has it.
const (
	streamName   = "RESULTS"
	serverWithin = 15 * time.Second
)

// hub is the embedded NATS server and the leader's own connection to it.
type hub struct {
	ns     *server.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
	store  string // folder of the stream, removed by close
}

// openHub starts a server at an address (port 0: any) which takes clients that
// have the token.
func openHub(ctx context.Context, listen, token, store string) (*hub, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("crew: address of the leader: %w", err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("crew: address of the leader: port %q", port)
	}
	opts := &server.Options{ServerName: "throng", Host: host, Port: int(number), Authorization: token, NoLog: true, NoSigs: true,
		MaxPayload: maxMessage, JetStream: true, StoreDir: store}
	if number == 0 {
		opts.Port = server.RANDOM_PORT
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("crew: NATS server: %w", err)
	}
	h := &hub{ns: ns, store: store}
	ns.Start()
	if !ns.ReadyForConnections(serverWithin) {
		h.close()
		return nil, fmt.Errorf("crew: the NATS server does not listen at %s", listen)
	}
	if err := h.connect(ctx, token); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *hub) connect(ctx context.Context, token string) (err error) {
	if h.nc, err = nats.Connect("", nats.InProcessServer(h.ns), nats.Token(token)); err != nil {
		return fmt.Errorf("crew: connect to the own NATS server: %w", err)
	}
	if h.js, err = jetstream.New(h.nc); err != nil {
		return fmt.Errorf("crew: JetStream: %w", err)
	}
	h.stream, err = h.js.CreateStream(ctx, jetstream.StreamConfig{Name: streamName, Subjects: []string{subjectResult + "*", subjectSpool + "*"},
		Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage})
	if err != nil {
		return fmt.Errorf("crew: stream of results: %w", err)
	}
	return nil
}

// url is where agents of this machine join.
func (h *hub) url() string { return h.ns.ClientURL() }

func (h *hub) close() {
	if h.nc != nil {
		h.nc.Close()
	}
	h.ns.Shutdown()
	h.ns.WaitForShutdown()
	if err := os.RemoveAll(h.store); err != nil && !errors.Is(err, os.ErrNotExist) {
		return // a folder that stays in the run folder does no harm
	}
}
