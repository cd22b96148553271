package containers

import (
	"context"
	"database/sql"
	"fmt"

	"throng/sim/target"
)

// Flush empties Redis, the only store that can be emptied, and returns how many
// keys it had.
func (d *Deployment) Flush(role string, instance int) (int64, error) {
	if role != RoleRedis || instance != 0 {
		return 0, fmt.Errorf("containers: %s/%d cannot be emptied, %s/0 can", role, instance, RoleRedis)
	}
	return target.FlushRedis(context.Background(), d.Address(RoleRedis, 0, portRedis))
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
