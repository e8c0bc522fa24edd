package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"gocloud.dev/blob"

	"reprise/traceformat"
)

// Register makes traceformat.Open read names in object storage.
func Register() {
	for _, s := range Schemes {
		traceformat.RegisterScheme(s, Open)
	}
}

// maxFolders bounds the folders that a dataset is looked for in.
const maxFolders = 1 << 16

// Open opens the trace that a name in object storage stands for: an object, a
// run directory or a dataset under a prefix, or the objects that a pattern
// matches. In a pattern * and [...] do not match a slash; there is no ?, which
// starts the parameters of a name.
func Open(full string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	ctx := context.Background()
	n, err := parse(full)
	if err != nil {
		return nil, err
	}
	b, err := openBucket(ctx, n)
	if err != nil {
		return nil, err
	}
	r, err := open(ctx, b, n, o)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return r, nil
}

// open opens n in b, which the Reader closes.
func open(ctx context.Context, b *blob.Bucket, n *name, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	if traceformat.IsPattern(n.key) {
		keys, err := match(ctx, b, n)
		if err != nil {
			return nil, err
		}
		if len(keys) == 0 {
			return nil, fmt.Errorf("no object matches: %w", fs.ErrNotExist)
		}
		return openKeys(b, n, keys, o)
	}
	if n.key != "" && !strings.HasSuffix(n.key, "/") {
		attrs, err := attributes(ctx, b, n)
		switch {
		case err == nil:
			return openOne(b, n, attrs, o)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	// No object: a folder.
	prefix := n.key
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	run := n.with(prefix + traceformat.RunTrace)
	switch attrs, err := attributes(ctx, b, run); {
	case err == nil:
		return openOne(b, run, attrs, o)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	keys, err := folder(ctx, b, n, prefix)
	switch {
	case err != nil:
		return nil, err
	case len(keys) == 0:
		return nil, fmt.Errorf("no such object, and no trace below it: %w", fs.ErrNotExist)
	}
	return openKeys(b, n, keys, o)
}

// openOne opens one object. The Reader closes the bucket.
func openOne(b *blob.Bucket, n *name, attrs *blob.Attributes, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	obj := openObject(b, n, attrs)
	r, err := traceformat.OpenObject(obj, n.full, o)
	if err != nil {
		obj.Close()
		return nil, err
	}
	return r, nil
}

// openKeys opens objects as one trace. Each is opened through a bucket of its
// own, since it closes that.
func openKeys(b *blob.Bucket, n *name, keys []string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	if err := b.Close(); err != nil {
		return nil, err
	}
	parts := make([]traceformat.Part, len(keys))
	for i, key := range keys {
		member := n.with(key)
		var first *blob.Attributes
		parts[i] = traceformat.Part{Name: member.full, Open: func(o *traceformat.OpenOptions) (traceformat.Reader, error) {
			ctx := context.Background()
			b, err := openBucket(ctx, member)
			if err != nil {
				return nil, err
			}
			if first == nil {
				if first, err = attributes(ctx, b, member); err != nil {
					return nil, errors.Join(err, b.Close())
				}
			}
			// Later calls read what the first one saw, or fail.
			return openOne(b, member, first, o)
		}}
	}
	return traceformat.OpenParts(n.full, parts, o)
}

// folder lists the files of a dataset below prefix.
func folder(ctx context.Context, b *blob.Bucket, n *name, prefix string) ([]string, error) {
	var keys []string
	folders := []string{prefix}
	for looked := 0; len(folders) > 0; looked++ {
		if looked == maxFolders {
			return nil, fmt.Errorf("has more than %d folders", maxFolders)
		}
		at := folders[0]
		folders = folders[1:]
		err := list(ctx, b, n, at, false, func(found *blob.ListObject) error {
			key := strings.TrimSuffix(found.Key[len(at):], "/")
			if at == prefix && key == traceformat.Unfinished {
				return traceformat.ErrUnfinished
			}
			switch traceformat.PartKind(key, found.IsDir) {
			case traceformat.PartFile:
				keys = append(keys, found.Key)
			case traceformat.PartFolder:
				folders = append(folders, found.Key)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// match lists the objects that the key of n, a pattern, matches.
func match(ctx context.Context, b *blob.Bucket, n *name) ([]string, error) {
	if _, err := path.Match(n.key, ""); err != nil {
		return nil, fmt.Errorf("not a pattern: %w", err)
	}
	prefix := n.key[:strings.IndexAny(n.key, "*?[")]
	var keys []string
	err := list(ctx, b, n, prefix, true, func(found *blob.ListObject) error {
		if ok, _ := path.Match(n.key, found.Key); ok {
			keys = append(keys, found.Key)
		}
		return nil
	})
	slices.Sort(keys)
	return keys, err
}
