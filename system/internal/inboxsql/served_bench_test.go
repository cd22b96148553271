//go:build unix

package inboxsql_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"throng/system/internal/inbox"
	"throng/system/internal/inboxsql"
	"throng/system/internal/rpc"
	"throng/system/internal/sqlstore"
	"throng/system/wire"
)

// BenchmarkServedGroupLive is a whole instance with its streams: messages to a
// group of 100 who are all there, so many on their way at once. The CPU of the
// callers, which are in this process, is in the figure.
func BenchmarkServedGroupLive(b *testing.B) {
	for _, window := range []int{1, 16} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) { benchServed(b, window) })
	}
}

func benchServed(b *testing.B, window int) {
	stores, err := inboxsql.Open(b.Context(), inboxsql.Config{Driver: sqlstore.SQLite, DSN: filepath.Join(b.TempDir(), "inbox")})
	if err != nil {
		b.Fatal(err)
	}
	defer stores.Close()
	in, err := inbox.New(inbox.Config{Instances: 1, Stores: stores.Stores()})
	if err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = in.Run(ctx, ln) })
	defer wg.Wait()
	defer cancel()
	conn, err := rpc.Dial(ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	for in.Ready() != nil {
	}
	const members = 100
	client := rpc.NewInboxClient(conn)
	users := make([]uint64, members)
	var req rpc.ProvisionUsersRequest
	open := &rpc.GatewayBatch{Hello: &rpc.GatewayHello{Gateway: "g"}}
	for i := range users {
		users[i] = uint64(i + 1)
		req.Users = append(req.Users, &wire.ProvisionUser{User: users[i]})
		open.Opens = append(open.Opens, &rpc.SessionOpen{User: users[i], Conn: users[i]})
	}
	if _, err := client.Provision(ctx, &req); err != nil {
		b.Fatal(err)
	}
	sessions, err := client.Sessions(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if err := sessions.Send(open); err != nil {
		b.Fatal(err)
	}
	current := make(chan struct{}, members)
	wg.Go(func() { acknowledge(sessions, members, current) })
	for range members {
		<-current
	}
	appends, err := client.Append(ctx)
	if err != nil {
		b.Fatal(err)
	}
	start, sent, done := cpu(b), 0, 0
	send := func() {
		sent++
		id := wire.IDOf(5, 0, uint64(sent))
		if err := appends.Send(&rpc.AppendBatch{Items: []*rpc.AppendItem{{Ref: uint64(sent), Users: users, Message: &rpc.Envelope{
			MessageId: id[:], Group: 9, From: 5, Seq: uint64(sent), Body: make([]byte, 100)}}}}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		for sent-done < window {
			send()
		}
		res, err := appends.Recv()
		if err != nil {
			b.Fatal(err)
		}
		done += len(res.Items)
	}
	perCPU(b, start, done*members, "delivery")
}

// acknowledge is a gateway whose clients acknowledge at once.
func acknowledge(s rpc.Inbox_SessionsClient, members int, current chan<- struct{}) {
	sent := make([]uint64, members+1)
	for {
		in, err := s.Recv()
		if err != nil {
			return
		}
		out := new(rpc.GatewayBatch)
		for _, o := range in.Out {
			if !o.Deliver {
				current <- struct{}{}
				continue
			}
			for _, c := range o.Conns {
				sent[c]++
				out.Acks = append(out.Acks, &rpc.SessionAck{Conn: c, User: c, Upto: sent[c]})
			}
		}
		if len(out.Acks) > 0 && s.Send(out) != nil {
			return
		}
	}
}
