package containers

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"time"
)

// FlushRedis empties Redis, as an operator's mistake or a failover would.
func (d *Deployment) FlushRedis(ctx context.Context) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", d.Address(RoleRedis, 0, portRedis))
	if err != nil {
		return fmt.Errorf("containers: flush redis: %w", err)
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(removeTimeout)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("containers: flush redis: %w", err)
	}
	if _, err := conn.Write([]byte("FLUSHALL\r\n")); err != nil {
		return fmt.Errorf("containers: flush redis: %w", err)
	}
	var buf [5]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return fmt.Errorf("containers: flush redis: %w", err)
	}
	if string(buf[:n]) != "+OK\r\n" {
		return fmt.Errorf("containers: flush redis: it answered %q", buf[:n])
	}
	return nil
}

// ReplicaLag returns how many transactions of the primary a replica (mysql/i, i
// from 1) has not applied yet.
func (d *Deployment) ReplicaLag(ctx context.Context, instance int) (int64, error) {
	primary, err := d.find(RoleMySQL, 0)
	if err != nil {
		return 0, err
	}
	replica, err := d.find(RoleMySQL, instance)
	if err != nil {
		return 0, err
	}
	var there string
	err = primary.query(ctx, func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT @@GLOBAL.gtid_executed").Scan(&there)
	})
	if err != nil {
		return 0, fmt.Errorf("containers: %s: %w", primary.name(), err)
	}
	var missing string
	err = replica.query(ctx, func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT GTID_SUBTRACT(?, @@GLOBAL.gtid_executed)", there).Scan(&missing)
	})
	if err != nil {
		return 0, fmt.Errorf("containers: %s: %w", replica.name(), err)
	}
	n, err := countGTIDs(missing)
	if err != nil {
		return 0, fmt.Errorf("containers: %s: %w", replica.name(), err)
	}
	return n, nil
}
