package containers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Schemas and accounts. The passwords protect nothing: the ports are published
// on this host's loopback alone, and everything is gone after the run.
const (
	groupSchema = "throng_groups"
	mediaSchema = "throng_media" // made by mediasql
	inboxSchema = "throng_inbox" // with the instance, and the loops by inboxsql

	account      = "throng" // roles and tests
	adminAccount = "throng_admin"
	replAccount  = "throng_replica"
	password     = "throng"

	mysqlData    = "/var/lib/mysql"
	mysqlInit    = "/throng-init.sql"
	mysqlTimeout = 5 * time.Second
)

// mysqlStart initialises the data folder at the first start where the image has
// not done it. Both the public image and ours can do this.
const mysqlStart = `set -e
[ -d ` + mysqlData + `/mysql ] || mysqld --no-defaults --user=mysql --initialize-insecure --datadir=` + mysqlData + `
exec mysqld "$@"`

// initSQL runs at every start, of the replicas too, and stays out of the binary
// log. One statement a line.
func initSQL() string {
	lines := []string{"SET sql_log_bin = 0"}
	lines = append(lines, "CREATE DATABASE IF NOT EXISTS "+groupSchema)
	for _, a := range []struct{ name, grant string }{
		{account, "ALL PRIVILEGES ON `throng\\_%`.*"},
		{adminAccount, "ALL PRIVILEGES ON *.*"},
		{replAccount, "REPLICATION SLAVE ON *.*"},
	} {
		lines = append(lines,
			fmt.Sprintf("CREATE USER IF NOT EXISTS '%s'@'%%' IDENTIFIED BY '%s'", a.name, password),
			fmt.Sprintf("GRANT %s TO '%s'@'%%'", a.grant, a.name))
	}
	return strings.Join(lines, ";\n") + ";\n"
}

// inboxSchemaOf is the schema of an inbox instance.
func inboxSchemaOf(i int) string { return fmt.Sprintf("%s_%d", inboxSchema, i) }

// describeMySQL adds the primary and its replicas.
func (d *Deployment) describeMySQL() error {
	for i := range d.cfg.Replicas + 1 {
		args := []string{"--user=mysql", "--datadir=" + mysqlData, fmt.Sprintf("--server-id=%d", i+1), "--init-file=" + mysqlInit,
			"--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--log-bin=binlog",
			// What was committed survives the death of any process, and of the machine.
			"--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1",
			"--innodb-buffer-pool-size=512M", "--innodb-redo-log-capacity=512M", "--innodb-numa-interleave=OFF",
			"--max-connections=1000", "--skip-name-resolve", "--mysqlx=OFF", "--secure-file-priv=NULL",
			"--log-error-verbosity=2"}
		if i > 0 {
			args = append(args, "--read-only=ON", "--relay-log=relay")
		}
		m := &member{d: d, role: RoleMySQL, instance: i, infra: true, image: d.images.mysql, ports: []string{portMySQL},
			entrypoint: []string{"sh", "-c", mysqlStart, "mysqld"}, cmd: args, files: map[string][]byte{mysqlInit: []byte(initSQL())}}
		m.probe = func(ctx context.Context) error { return m.probeMySQL(ctx) }
		var err error
		if m.source, err = d.mysqlFrom(RoleMySQL, i, 0); err != nil {
			return err
		}
		d.members = append(d.members, m)
	}
	return nil
}

// dsn is how go-sql-driver reaches a schema, as the roles do.
func dsn(addr, schema string) string { return dsnOf(account, addr, schema) }

func dsnOf(user, addr, schema string) string {
	c := mysql.NewConfig()
	c.User, c.Passwd, c.Net, c.Addr, c.DBName = user, password, "tcp", addr, schema
	c.Timeout = mysqlTimeout
	return c.FormatDSN()
}

// Schema makes an empty schema on the primary and returns its DSN, as this host
// reaches it. name is throng_ and what is allowed in a name without quotes.
func (d *Deployment) Schema(ctx context.Context, name string) (string, error) {
	primary, err := d.find(RoleMySQL, 0)
	if err != nil {
		return "", err
	}
	err = primary.query(ctx, func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, "CREATE DATABASE "+name)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("containers: schema %s: %w", name, err)
	}
	return dsn(primary.published[portMySQL], name), nil
}

// query runs f with a connection of the administrator's.
func (m *member) query(ctx context.Context, f func(*sql.DB) error) error {
	ctx, cancel := context.WithTimeout(ctx, mysqlTimeout)
	defer cancel()
	c, err := mysql.ParseDSN(dsnOf(adminAccount, m.published[portMySQL], ""))
	if err != nil {
		return err
	}
	c.Logger = &mysql.NopLogger{} // probes fail until it is up, and return that
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	err = db.PingContext(ctx)
	if err == nil {
		err = f(db)
	}
	return errors.Join(err, db.Close())
}

func (m *member) probeMySQL(ctx context.Context) error {
	return m.query(ctx, func(db *sql.DB) error {
		// The last thing that the init file makes: when it is there, all is.
		var n int
		row := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM mysql.user WHERE user = ?", replAccount)
		if err := row.Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the accounts are not there yet")
		}
		return nil
	})
}

// follow makes a replica replicate from the primary by GTID, and waits until it does.
func follow(ctx context.Context, m *member) error {
	host, port, err := net.SplitHostPort(m.source)
	if err != nil {
		return fmt.Errorf("containers: %s: replication: %w", m.name(), err)
	}
	err = m.query(ctx, func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, "CHANGE REPLICATION SOURCE TO SOURCE_HOST='"+host+"', SOURCE_PORT="+port+
			", SOURCE_USER='"+replAccount+"', SOURCE_PASSWORD='"+password+"', SOURCE_AUTO_POSITION=1, GET_SOURCE_PUBLIC_KEY=1"+
			", SOURCE_CONNECT_RETRY=1")
		if err != nil {
			return err
		}
		_, err = db.ExecContext(ctx, "START REPLICA")
		return err
	})
	if err != nil {
		return fmt.Errorf("containers: %s: replication: %w", m.name(), err)
	}
	// From now on it is ready only when it follows.
	m.probe = func(ctx context.Context) error { return m.follows(ctx) }
	return m.awaitReady(ctx)
}

// follows returns nil when both threads of the replication run.
func (m *member) follows(ctx context.Context) error {
	return m.query(ctx, func(db *sql.DB) error {
		rows, err := db.QueryContext(ctx, "SHOW REPLICA STATUS")
		if err != nil {
			return err
		}
		defer rows.Close()
		names, err := rows.Columns()
		if err != nil {
			return err
		}
		if !rows.Next() {
			return errors.Join(errors.New("it replicates from nobody"), rows.Err())
		}
		values := make([]sql.RawBytes, len(names))
		into := make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		status := map[string]string{}
		for i, name := range names {
			status[name] = string(values[i])
		}
		if status["Replica_IO_Running"] != "Yes" || status["Replica_SQL_Running"] != "Yes" {
			return fmt.Errorf("replication: receiver %s, applier %s %s %s", status["Replica_IO_Running"], status["Replica_SQL_Running"],
				status["Last_IO_Error"], status["Last_SQL_Error"])
		}
		return nil
	})
}

// countGTIDs counts the transactions of a set like "uuid:1-5:7,uuid:9".
func countGTIDs(set string) (int64, error) {
	var total int64
	for one := range strings.SplitSeq(set, ",") {
		parts := strings.Split(strings.TrimSpace(one), ":")
		for _, interval := range parts[1:] {
			low, high, isRange := strings.Cut(interval, "-")
			a, err := strconv.ParseInt(low, 10, 64)
			b := a
			if err == nil && isRange {
				b, err = strconv.ParseInt(high, 10, 64)
			}
			if err != nil {
				return 0, fmt.Errorf("GTID set %q: %w", set, err)
			}
			total += b - a + 1
		}
	}
	return total, nil
}
