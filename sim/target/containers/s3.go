package containers

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"throng/sim/target"
)

// The S3-compatible server. The keys protect nothing: see the passwords of MySQL.
const (
	portS3   = "7070"
	s3Data   = "/data"
	s3Bucket = "throng-media"
	s3Health = "/health"
	s3Secret = "throng-secret"
)

// s3Start makes the bucket, which is a folder, at the first start. Both the
// public image and ours can do this.
const s3Start = `set -e
mkdir -p ` + s3Data + "/" + s3Bucket + `
exec versitygw "$@"`

// usesS3 says whether there is an S3-compatible server: where something is kept
// there, and the daemon has an image of one.
func (d *Deployment) usesS3() bool {
	return d.images.s3 != "" && (d.cfg.Topology.Medias > 0 || d.cfg.NoRoles)
}

// describeS3 adds the server.
func (d *Deployment) describeS3() {
	if !d.usesS3() {
		return
	}
	m := &member{d: d, role: RoleS3, infra: true, image: d.images.s3, ports: []string{portS3},
		entrypoint: []string{"sh", "-c", s3Start, "versitygw"},
		cmd:        []string{"--port", ":" + portS3, "--access", account, "--secret", s3Secret, "--health", s3Health, "--keep-alive", "--quiet", "posix", s3Data}}
	m.probe = func(ctx context.Context) error {
		return target.ProbeHTTP(ctx, d.http, "http://"+m.published[portS3]+s3Health)
	}
	d.members = append(d.members, m)
}

// s3URL is the bucket as system/internal/blob takes it.
func s3URL(addr string) string {
	q := url.Values{"endpoint": {"http://" + addr}, "region": {"us-east-1"}, "use_path_style": {"true"}}
	return "s3://" + s3Bucket + "?" + q.Encode()
}

// s3Keys are the environment of who uses the bucket.
func s3Keys() map[string]string {
	return map[string]string{"AWS_ACCESS_KEY_ID": account, "AWS_SECRET_ACCESS_KEY": s3Secret}
}

// blobsURL is where the media instances keep blobs.
func (d *Deployment) blobsURL() string {
	if d.usesS3() {
		return s3URL(RoleS3 + "-0:" + portS3)
	}
	return "file://" + mediaFolder
}

// mediaVolume makes the folder of this host that all media instances share as
// their blob store where there is no S3.
func (d *Deployment) mediaVolume() (string, error) {
	folder := filepath.Join(d.work.path, "media")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("containers: media volume: %w", err)
	}
	if err := os.Chmod(folder, 0o777); err != nil { // the roles are nobody there
		return "", fmt.Errorf("containers: media volume: %w", err)
	}
	return folder, nil
}
