package traceout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"reprise/internal/cli"
)

// A Store is object storage, as programs that are built with the tag cloud have
// it. Names are whole: scheme://bucket/key.
type Store interface {
	// Check reports why an object cannot be written, before the work is done.
	Check(ctx context.Context, name string, force bool) error
	// Upload makes a file of this machine an object, whole or not at all. An
	// object of the same content is left as it is, done says so.
	Upload(ctx context.Context, path, name string, force bool) (done bool, err error)
	// Download makes an object a file of this machine, whole or not at all.
	Download(ctx context.Context, name, path string, force bool) error
	// List returns what lies below a name; nothing where the name is an object.
	List(ctx context.Context, name string) ([]Object, error)
	// Remove removes an object, if there is one.
	Remove(ctx context.Context, name string) error
}

// An Object is one below a name that was listed.
type Object struct {
	Key      string // relative to the name
	Size     int64
	Modified time.Time
}

// store is the one that was registered, if one was.
var store Store

// RegisterStore makes names in object storage places to write to.
func RegisterStore(s Store) { store = s }

// Remote reports whether a name lies in object storage.
func Remote(name string) bool {
	scheme, _, ok := strings.Cut(name, "://")
	return ok && (scheme == "s3" || scheme == "gs" || scheme == "azblob")
}

// RemoteStore returns the store, or an error that names the build that has one.
func RemoteStore() (Store, error) {
	if store == nil {
		return nil, cli.Usagef("make cloud builds bin/cloud/trace and the others, which read and write s3://, gs:// and azblob://", "this build has no object storage")
	}
	return store, nil
}

// checkRemote is CheckTarget for a trace that goes to object storage.
func checkRemote(ctx context.Context, name string, force bool) error {
	s, err := RemoteStore()
	if err != nil {
		return err
	}
	return s.Check(ctx, name, force)
}

// Upload makes a finished file an object. Where that fails the file stays, and
// the error says how to go on.
func Upload(ctx context.Context, path, name string, force bool) error {
	s, err := RemoteStore()
	if err != nil {
		return err
	}
	if _, err = s.Upload(ctx, path, name, force); err == nil {
		return nil
	}
	again := fmt.Sprintf("the trace is whole and kept: trace cp %s '%s' uploads it again", path, name)
	if errors.Is(err, context.Canceled) {
		return &cli.Error{Code: cli.Interrupted, Err: fmt.Errorf("%s: interrupted while it was uploaded; there is no such object", name), Hint: again}
	}
	return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: not uploaded: %w", name, err), Hint: again}
}
