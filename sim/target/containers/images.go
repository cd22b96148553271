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
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// Images of the infrastructure. An empty name means: the public image of the
// pinned version if the daemon has it, else the one that `make images` builds.
// Nothing is ever pulled.
type Images struct {
	Kafka, MySQL, Redis string
}

// The environment variables of ImagesFromEnv.
const (
	EnvImageKafka = "THRONG_IMAGE_KAFKA"
	EnvImageMySQL = "THRONG_IMAGE_MYSQL"
	EnvImageRedis = "THRONG_IMAGE_REDIS"
)

// Versions that are pinned, as system/deploy/images has them.
const (
	kafkaVersion = "4.4.0"
	mysqlVersion = "9"
	redisVersion = "7"
)

// ImagesFromEnv returns what the environment names; getenv is os.Getenv.
func ImagesFromEnv(getenv func(string) string) Images {
	return Images{Kafka: getenv(EnvImageKafka), MySQL: getenv(EnvImageMySQL), Redis: getenv(EnvImageRedis)}
}

// resolved names images that the daemon has.
type resolved struct{ kafka, mysql, redis, role string }

// resolve finds the images. The error names each one that is missing.
func (i Images) resolve(ctx context.Context, api client.APIClient) (resolved, error) {
	var r resolved
	var errs []error
	for _, want := range []struct {
		into            *string
		chosen, env     string
		public, ourOwns string
	}{
		{&r.kafka, i.Kafka, EnvImageKafka, "apache/kafka:" + kafkaVersion, "throng/kafka:" + kafkaVersion},
		{&r.mysql, i.MySQL, EnvImageMySQL, "mysql:" + mysqlVersion, "throng/mysql:" + mysqlVersion},
		{&r.redis, i.Redis, EnvImageRedis, "redis:" + redisVersion, "throng/redis:" + redisVersion},
	} {
		names := []string{want.chosen}
		if want.chosen == "" {
			names = []string{want.public, want.ourOwns}
		}
		for _, name := range names {
			ok, err := hasImage(ctx, api, name)
			if err != nil {
				return resolved{}, err
			}
			if ok {
				*want.into = name
				break
			}
		}
		if *want.into == "" {
			errs = append(errs, fmt.Errorf("containers: the daemon has no image %s: pull it, or run make images, or name another in %s",
				names[0], want.env))
		}
	}
	return r, errors.Join(errs...)
}

func hasImage(ctx context.Context, api client.APIClient, name string) (bool, error) {
	_, err := api.ImageInspect(ctx, name)
	switch {
	case err == nil:
		return true, nil
	case errdefs.IsNotFound(err):
		return false, nil
	}
	return false, fmt.Errorf("containers: look for image %s: %w", name, err)
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
	if ok, err := hasImage(ctx, api, name); ok || err != nil {
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
	if ok, err := hasImage(ctx, api, name); !ok {
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
