package traceout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"reprise/internal/cli"
	"reprise/internal/durable"
	"reprise/internal/units"
	"reprise/traceformat"
)

// runFile is what a run directory is known by.
const runFile = "run.json"

// Below is the name of key under a name in object storage, whose parameters
// stay at the end.
func Below(name, key string) string {
	name, params, has := strings.Cut(name, "?")
	name = strings.TrimSuffix(name, "/") + "/" + key
	if has {
		name += "?" + params
	}
	return name
}

// Key is a name in object storage without its parameters.
func Key(name string) string {
	name, _, _ = strings.Cut(name, "?")
	return name
}

// SendFolder uploads the files of a folder. None of it passes for the whole
// before all is there: the run.json of a run comes last, and any other folder
// holds traceformat.Unfinished meanwhile. say is told of each file, and whether
// it was there already; a second call goes on where the first one ended.
func SendFolder(ctx context.Context, s Store, from, to string, force bool, say func(there bool, file, name string) error) error {
	var keys []string
	err := filepath.WalkDir(from, func(file string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(file, ".tmp") {
			return err
		}
		key, err := filepath.Rel(from, file)
		if key = filepath.ToSlash(key); key != traceformat.Unfinished {
			keys = append(keys, key)
		}
		return err
	})
	if err != nil {
		return err
	}
	// The outermost run.json is the last.
	slices.SortStableFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), rank(a)*cmp.Compare(strings.Count(b, "/"), strings.Count(a, "/")))
	})
	isRun, marked, sent := slices.Contains(keys, runFile), true, false
	if isRun && force {
		// Files of two runs must not pass for one while this goes on.
		if err := s.Remove(ctx, Below(to, runFile)); err != nil {
			return err
		}
	}
	mark := Below(to, traceformat.Unfinished)
	if !isRun {
		if marked, err = putMark(ctx, s, mark); err != nil {
			return err
		}
	}
	for _, key := range keys {
		file, name := filepath.Join(from, filepath.FromSlash(key)), Below(to, key)
		there, err := s.Upload(ctx, file, name, force)
		if err != nil {
			// What another has put there whole stays so.
			if !marked && !sent {
				err = errors.Join(err, s.Remove(context.WithoutCancel(ctx), mark))
			}
			if errors.Is(err, context.Canceled) {
				return err
			}
			return fmt.Errorf("%s: %w", name, err)
		}
		sent = sent || !there
		if err := say(there, file, name); err != nil {
			return err
		}
	}
	if isRun {
		return nil
	}
	return s.Remove(ctx, mark)
}

// rank orders what is uploaded: what a run is known by after its rows.
func rank(key string) int {
	if path.Base(key) == runFile {
		return 1
	}
	return 0
}

// putMark uploads the mark of a folder that is not whole.
func putMark(ctx context.Context, s Store, name string) (there bool, err error) {
	f, err := os.CreateTemp("", "reprise-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString("this folder is being uploaded\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	there, err = s.Upload(ctx, f.Name(), name, true)
	if err != nil && !errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return there, err
}

// CheckFolder reports why a folder cannot be uploaded to name, before the work
// is done: the store refuses, or something is there.
func CheckFolder(ctx context.Context, name string) error {
	s, err := RemoteStore()
	if err != nil {
		return err
	}
	there, err := s.List(ctx, name)
	if err == nil && len(there) > 0 {
		return cli.Usagef("name another, or remove it with the tools of the store", "%s holds %s already: a folder there is not written over", name, there[0].Key)
	}
	return err
}

// PublishFolder uploads a finished folder and removes it here. Where that fails
// the folder stays, and the error says how to go on.
func PublishFolder(ctx context.Context, dir, name string) error {
	s, err := RemoteStore()
	if err != nil {
		return err
	}
	err = SendFolder(ctx, s, dir, name, false, func(bool, string, string) error { return nil })
	if err == nil {
		return os.RemoveAll(dir)
	}
	again := fmt.Sprintf("it is whole and kept in %s: trace cp %s '%s' goes on with the upload", dir, dir, name)
	if errors.Is(err, context.Canceled) {
		return &cli.Error{Code: cli.Interrupted, Err: fmt.Errorf("%s: interrupted while it was uploaded", name), Hint: again}
	}
	return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("not uploaded: %w", err), Hint: again}
}

// errMoved is a folder that changes under whoever reads it.
var errMoved = errors.New("its objects changed while they were fetched: start again when nobody writes them")

// FetchFolder downloads what lies below a name, as all of it was at one time. say
// is told of each file. Where there is nothing it returns fs.ErrNotExist, and
// where there is not room enough it says so before it begins.
func FetchFolder(ctx context.Context, s Store, from, to string, force bool, say func(name, file string) error) error {
	list, err := s.List(ctx, from)
	if err != nil {
		return err
	}
	var size int64
	for _, o := range list {
		if o.Key == traceformat.Unfinished {
			return fmt.Errorf("%s: %w", from, traceformat.ErrUnfinished)
		}
		size += o.Size
	}
	if len(list) == 0 {
		return fmt.Errorf("%s: %w", from, fs.ErrNotExist)
	}
	if free, ok := durable.Free(existing(to)); ok && size > free {
		return &cli.Error{
			Code: cli.Failed, Err: fmt.Errorf("%s: is %s to fetch, and %s are free where %s is to be", from, units.Bytes(size), units.Bytes(free), to),
			Hint: "make room, or name a larger disk; TMPDIR is where temporary files go",
		}
	}
	for _, o := range list {
		file := filepath.Join(to, filepath.FromSlash(o.Key))
		if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
			return err
		}
		name := Below(from, o.Key)
		if err := s.Download(ctx, name, file, force); err != nil {
			return err
		}
		if err := say(name, file); err != nil {
			return err
		}
	}
	// Each object was one version; together they are one if none is new.
	again, err := s.List(ctx, from)
	if err == nil && !slices.EqualFunc(list, again, func(a, b Object) bool { return a.Key == b.Key && a.Size == b.Size && a.Modified.Equal(b.Modified) }) {
		err = fmt.Errorf("%s: %w", from, errMoved)
	}
	return err
}

// existing is the innermost folder above path, or path, that is there.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || filepath.Dir(path) == path {
			return path
		}
		path = filepath.Dir(path)
	}
}

// FindRuns returns the names of the run directories that a name in object storage
// stands for: one, those that a pattern matches, or none where it is a trace.
func FindRuns(ctx context.Context, s Store, name string) ([]string, error) {
	pattern, params, _ := strings.Cut(name, "?")
	pattern = strings.TrimSuffix(pattern, "/")
	if params != "" {
		params = "?" + params
	}
	if !traceformat.IsPattern(pattern) {
		switch err := s.Check(ctx, Below(name, runFile), false); {
		case errors.Is(err, fs.ErrExist):
			return []string{name}, nil
		default:
			return nil, err
		}
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, cli.Usagef("", "%s: %w", name, err)
	}
	base := pattern[:strings.LastIndex(pattern[:strings.IndexAny(pattern, "*?[")], "/")]
	if strings.HasSuffix(base, ":/") {
		return nil, cli.Usagef("s3://bucket/*", "%s: a bucket has no pattern", name)
	}
	list, err := s.List(ctx, base+params)
	if err != nil {
		return nil, err
	}
	var runs []string
	for _, o := range list {
		run := base + "/" + path.Dir(o.Key)
		if ok, _ := path.Match(pattern, run); ok && path.Base(o.Key) == runFile {
			runs = append(runs, run+params)
		}
	}
	return runs, nil
}
