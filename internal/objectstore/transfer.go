package objectstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"reprise/internal/durable"
	"reprise/internal/traceout"
)

// partSize is what an upload sends at a time; the most parts that S3 takes,
// 10,000, make 160 GB. Tests lower it.
var partSize = 16 << 20

const (
	partsAtOnce = 3
	// grace is how long an upload that is interrupted has to give its parts up.
	grace = 10 * time.Second
	// sumKey is the metadata that holds the SHA-256 of what was uploaded.
	sumKey = "sha256"
	// downloadSize is what is read at a time.
	downloadSize = 8 << 20
)

// A Store writes to object storage; it is a traceout.Store.
type Store struct{}

var _ traceout.Store = Store{}

// exists is what an object that is there gives without force.
func exists(full string) error { return fmt.Errorf("%s %w: --force replaces it", full, fs.ErrExist) }

// target opens where an object is to go.
func target(ctx context.Context, full string) (*blob.Bucket, *name, error) {
	n, err := parse(full)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", full, err)
	}
	if n.key == "" || strings.HasSuffix(n.key, "/") {
		return nil, nil, fmt.Errorf("%s: names no object: want scheme://bucket/key", full)
	}
	b, err := openBucket(ctx, n)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", full, err)
	}
	return b, n, nil
}

// Check asks the store for the object, which finds bad credentials, too.
func (Store) Check(ctx context.Context, full string, force bool) error {
	b, n, err := target(ctx, full)
	if err != nil {
		return err
	}
	defer b.Close()
	switch _, err := attributes(ctx, b, n); {
	case err == nil && !force:
		return exists(full)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", full, err)
	}
	return nil
}

// Upload sends a file in parts. The store makes them an object when it has all;
// on an error, and when ctx ends, what it has is given up.
func (Store) Upload(ctx context.Context, path, full string, force bool) (done bool, err error) {
	b, n, err := target(ctx, full)
	if err != nil {
		return false, err
	}
	defer b.Close()
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return false, err
	}
	sum := hex.EncodeToString(h.Sum(nil))
	switch a, err := attributes(ctx, b, n); {
	case err == nil && a.Size == size && a.Metadata[sumKey] == sum:
		return true, nil
	case err == nil && !force:
		return false, exists(full)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	// The driver of S3 gives the parts up when reading fails, and cannot any more
	// when its context has ended; others give up when their context ends, and
	// would make an object of what was read.
	writing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(grace):
			cancel()
		case <-writing.Done():
		}
	})()
	in := &source{ctx: ctx, r: f, failed: cancel}
	if strings.HasPrefix(n.bucket, "s3:") {
		in.failed = func() {}
	}
	err = b.Upload(writing, n.key, in, &blob.WriterOptions{
		BufferSize: partSize, MaxConcurrency: partsAtOnce, IfNotExist: !force,
		Metadata: map[string]string{sumKey: sum}, ContentType: "application/octet-stream",
	})
	switch {
	case err == nil: // whole, even if an interrupt came at the last moment
	case ctx.Err() != nil:
		return false, ctx.Err()
	case !force && (gcerrors.Code(err) == gcerrors.FailedPrecondition || gcerrors.Code(err) == gcerrors.AlreadyExists):
		return false, fmt.Errorf("%w while it was uploaded", exists(full))
	default:
		if e := explain(err); e != nil {
			return false, e
		}
		return false, short(err)
	}
	a, err := attributes(ctx, b, n)
	if err != nil {
		return false, fmt.Errorf("asking for what was uploaded: %w", err)
	}
	if a.Size != size {
		return false, fmt.Errorf("the store has %d bytes of %d", a.Size, size)
	}
	return false, nil
}

// A source is a file that ends with an error when ctx ends.
type source struct {
	ctx    context.Context
	r      io.Reader
	failed func()
}

func (s *source) Read(p []byte) (n int, err error) {
	if err = s.ctx.Err(); err == nil {
		n, err = s.r.Read(p)
	}
	if err != nil && err != io.EOF {
		s.failed()
	}
	return n, err
}

// Download reads an object into a file that appears when it is whole.
func (Store) Download(ctx context.Context, full, path string, force bool) (err error) {
	b, n, err := target(ctx, full)
	if err != nil {
		return err
	}
	defer b.Close()
	a, err := attributes(ctx, b, n)
	if err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return exists(path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	h := sha256.New()
	for at := int64(0); at < a.Size; {
		to := min(at+downloadSize, a.Size)
		data, err := readRange(ctx, b, n, a, at, to)
		if err != nil {
			return fmt.Errorf("%s: %w", full, err)
		}
		h.Write(data)
		if _, err := f.Write(data); err != nil {
			return err
		}
		at = to
	}
	if sum := a.Metadata[sumKey]; sum != "" && sum != hex.EncodeToString(h.Sum(nil)) {
		return fmt.Errorf("%s: what came is not what was uploaded: its SHA-256 differs", full)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// maxObjects bounds what is listed below a name.
const maxObjects = 1 << 20

// List returns all objects below a name.
func (Store) List(ctx context.Context, full string) ([]traceout.Object, error) {
	n, err := parse(full)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", full, err)
	}
	b, err := openBucket(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", full, err)
	}
	defer b.Close()
	prefix := strings.TrimSuffix(n.key, "/") + "/"
	if prefix == "/" {
		prefix = ""
	}
	var all []traceout.Object
	err = list(ctx, b, n, prefix, true, func(found *blob.ListObject) error {
		if len(all) == maxObjects {
			return fmt.Errorf("more than %d objects lie below it: name a folder further down", maxObjects)
		}
		if key := found.Key[len(prefix):]; key != "" && filepath.IsLocal(key) {
			all = append(all, traceout.Object{Key: key, Size: found.Size, Modified: found.ModTime})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", full, err)
	}
	return all, nil
}

// Remove removes an object. That there is none is no error.
func (Store) Remove(ctx context.Context, full string) error {
	b, n, err := target(ctx, full)
	if err != nil {
		return err
	}
	defer b.Close()
	err = n.retry(ctx, func(ctx context.Context) error { return b.Delete(ctx, n.key) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", full, err)
	}
	return nil
}
