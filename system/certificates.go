package system

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"throng/system/internal/certs"
	"throng/system/internal/rpc"
)

// WriteCertificates puts a certificate for each role into a folder, good for so
// long, and returns the setting that uses them. The authority is ca.pem and ca.key
// there, made if it is missing: with it, calling this again renews the certificates
// of roles that run.
func WriteCertificates(dir string, life time.Duration) (RPCTLS, error) {
	a, err := certs.OpenAuthority(dir, "throng roles")
	if err != nil {
		return RPCTLS{}, fmt.Errorf("system: %w", err)
	}
	for _, r := range Roles() {
		err = errors.Join(err, a.IssueTo(dir, string(r), time.Now().Add(life), rpc.NameOf(string(r))))
	}
	if err != nil {
		return RPCTLS{}, fmt.Errorf("system: %w", err)
	}
	return RPCTLS{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "{role}.pem"), Key: filepath.Join(dir, "{role}.key")}, nil
}

// certificatesCommand is WriteCertificates on the command line.
func certificatesCommand() *cobra.Command {
	days := 90
	cmd := &cobra.Command{
		Use: "certificates FOLDER", Short: "Makes or renews the certificates of rpc_tls, one for each role", Args: cobra.ExactArgs(1),
		Long: `Writes <role>.pem and <role>.key for each role, signed by ca.pem and ca.key of the
folder, which are made where they are missing. Processes that use the files read
them again: run it again before they expire. Only this command needs ca.key.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := WriteCertificates(args[0], time.Duration(days)*24*time.Hour)
			if err != nil {
				return &codedError{ExitFailed, err}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "\"rpc_tls\": {\"ca\": %q, \"cert\": %q, \"key\": %q}\n", set.CA, set.Cert, set.Key)
			return err
		},
	}
	cmd.Flags().IntVar(&days, "days", days, "how long the certificates are good for")
	return cmd
}
