package containers

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// Images of the infrastructure. An empty name means: the public image of the
// pinned version if the daemon has it, else the one that `make images` builds.
// Nothing is ever pulled. Without an image of S3 that is named, blobs of media are
// on a volume.
type Images struct {
	Kafka, MySQL, Redis, S3 string
}

// The environment variables of ImagesFromEnv.
const (
	EnvImageKafka = "THRONG_IMAGE_KAFKA"
	EnvImageMySQL = "THRONG_IMAGE_MYSQL"
	EnvImageRedis = "THRONG_IMAGE_REDIS"
	EnvImageS3    = "THRONG_IMAGE_S3"
)

// Images by default: the public ones of pinned versions, and those that
// system/deploy/images builds.
const (
	publicKafka, ownKafka = "apache/kafka:4.4.0", "throng/kafka:4.4.0"
	publicMySQL, ownMySQL = "mysql:9.7", "throng/mysql:9"
	publicRedis, ownRedis = "redis:7.4", "throng/redis:7"
	publicS3, ownS3       = "versity/versitygw:v1.8.0", "throng/s3:1.8.0"
)

// ImagesFromEnv returns what the environment names; getenv is os.Getenv.
func ImagesFromEnv(getenv func(string) string) Images {
	return Images{Kafka: getenv(EnvImageKafka), MySQL: getenv(EnvImageMySQL), Redis: getenv(EnvImageRedis), S3: getenv(EnvImageS3)}
}

// resolved names images that the daemon has.
type resolved struct {
	kafka, mysql, redis, role string
	s3                        string            // "": there is none
	ids                       map[string]string // of the infrastructure's, by name
}

// version is an image's name and the beginning of its id: a name can mean
// another image tomorrow.
func (r *resolved) version(name string) string {
	id := strings.TrimPrefix(r.ids[name], "sha256:")
	return name + " " + id[:min(len(id), 12)]
}

// resolve finds the images. The error names each one that is missing.
func (i Images) resolve(ctx context.Context, api client.APIClient) (resolved, error) {
	r := resolved{ids: map[string]string{}}
	var errs []error
	for _, want := range []struct {
		into              *string
		role, chosen, env string
		byDefault         []string
	}{
		{&r.kafka, RoleKafka, i.Kafka, EnvImageKafka, []string{publicKafka, ownKafka}},
		{&r.mysql, RoleMySQL, i.MySQL, EnvImageMySQL, []string{publicMySQL, ownMySQL}},
		{&r.redis, RoleRedis, i.Redis, EnvImageRedis, []string{publicRedis, ownRedis}},
		{&r.s3, RoleS3, i.S3, EnvImageS3, []string{publicS3, ownS3}},
	} {
		names := []string{want.chosen}
		if want.chosen == "" {
			names = want.byDefault
		}
		for _, name := range names {
			id, err := imageID(ctx, api, name)
			if err != nil {
				return resolved{}, err
			}
			if id != "" {
				*want.into, r.ids[name] = name, id
				break
			}
		}
		if *want.into == "" && (want.role != RoleS3 || want.chosen != "") {
			errs = append(errs, fmt.Errorf("containers: the daemon has no image %s: pull it, or run make images, or name another with --image %s=NAME or in %s",
				names[0], want.role, want.env))
		}
	}
	return r, errors.Join(errs...)
}

// imageID returns "" where the daemon has no such image.
func imageID(ctx context.Context, api client.APIClient, name string) (string, error) {
	info, err := api.ImageInspect(ctx, name)
	switch {
	case err == nil:
		return info.ID, nil
	case errdefs.IsNotFound(err):
		return "", nil
	}
	return "", fmt.Errorf("containers: look for image %s: %w", name, err)
}

const (
	roleRepository = "throng/role"
	roleBinary     = "/throng"
	// roleImageLife is how long images of earlier binaries are kept for harnesses
	// that may be about to use them.
	roleImageLife = time.Hour
)

// roleImage returns an image that holds the static binary exe and nothing else
// but an empty /tmp. It is made when the daemon has none of that binary;
// images of earlier binaries that nobody uses are removed then.
func roleImage(ctx context.Context, api client.APIClient, exe string) (string, error) {
	f, err := os.Open(exe)
	if err != nil {
		return "", fmt.Errorf("containers: binary of the roles: %w", err)
	}
	defer f.Close()
	if err := checkStatic(f); err != nil {
		return "", fmt.Errorf("containers: %s: %w", exe, err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("containers: binary of the roles: %w", err)
	}
	name := roleRepository + ":" + hex.EncodeToString(h.Sum(nil))[:16]
	if id, err := imageID(ctx, api, name); id != "" || err != nil {
		return name, err
	}
	removeOldRoleImages(ctx, api)
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("containers: binary of the roles: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("containers: binary of the roles: %w", err)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeRoot(w, f, info.Size())) }()
	defer r.Close()
	res, err := api.ImageImport(ctx, client.ImageImportSource{Source: r, SourceName: "-"}, name, client.ImageImportOptions{
		Changes: []string{`ENTRYPOINT ["` + roleBinary + `"]`, "LABEL " + labelRole + "=image", "WORKDIR /tmp"},
	})
	if err != nil {
		return "", fmt.Errorf("containers: image of the roles: %w", err)
	}
	defer res.Close()
	if _, err := io.Copy(io.Discard, res); err != nil {
		return "", fmt.Errorf("containers: image of the roles: %w", err)
	}
	if id, err := imageID(ctx, api, name); id == "" {
		return "", errors.Join(errors.New("containers: the image of the roles was not made"), err)
	}
	return name, nil
}

// checkStatic returns nil for a binary that needs no other file to run on Linux.
func checkStatic(f *os.File) error {
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("no binary for Linux: %w", err)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("the binary is not static, and its image holds nothing else: build it with CGO_ENABLED=0, without -race")
		}
	}
	return nil
}

// writeRoot writes the file system of the image: the binary and /tmp.
func writeRoot(w io.Writer, exe io.Reader, size int64) error {
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: roleBinary[1:], Mode: 0o755, Size: size}); err != nil {
		return err
	}
	if _, err := io.Copy(t, exe); err != nil {
		return err
	}
	return t.Close()
}

// removeOldRoleImages makes room. What is in use or cannot be removed stays.
func removeOldRoleImages(ctx context.Context, api client.APIClient) {
	list, err := api.ImageList(ctx, client.ImageListOptions{Filters: client.Filters{}.Add("label", labelRole+"=image")})
	if err != nil {
		return
	}
	for _, image := range list.Items {
		if time.Since(time.Unix(image.Created, 0)) > roleImageLife {
			_, _ = api.ImageRemove(ctx, image.ID, client.ImageRemoveOptions{})
		}
	}
}
