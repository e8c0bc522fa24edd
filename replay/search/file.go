package search

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"reprise/internal/durable"
	"reprise/internal/metrics"
	"reprise/replay"
)

// Names in the folder of a search.
const (
	FileName     = "search.json"
	MarkdownName = "search.md"
	RunsDir      = "runs"
)

// Version is the version of search.json.
const Version = 1

// maxFile bounds search.json.
const maxFile = 64 << 20

// A File is search.json: what is looked for and what was played so far.
type File struct {
	Version int            `json:"version"`
	Program replay.Program `json:"program"`
	Created time.Time      `json:"created"`
	Args    []string       `json:"args"`
	// Flags are those of every run, as "name=value" in alphabetical order.
	Flags   []string `json:"flags"`
	Trace   string   `json:"trace"`       // without its folder
	Digest  string   `json:"plan_digest"` // of a run of Spec.Requests, before the load is set
	Backend string   `json:"backend"`
	// Cache is what the prefix caches are before each run, where no flag says so.
	Cache string   `json:"cache,omitempty"`
	Spec  Spec     `json:"search"`
	Notes []string `json:"notes,omitempty"`
	Runs  []Run    `json:"runs"`
	// Result is of Runs, written with them.
	Result *Result `json:"result"`
}

// Differs says in what way another command line is not that of f, empty if it
// is. A search may be given more runs, a curve or confirmations later on.
func (f *File) Differs(g *File) string {
	a, b := f.Spec, g.Spec
	switch {
	case f.Trace != g.Trace:
		return fmt.Sprintf("it plays %s, and this is %s", f.Trace, g.Trace)
	case !slices.Equal(f.Flags, g.Flags):
		return fmt.Sprintf("it has the flags %q, and this has %q", f.Flags, g.Flags)
	case f.Digest != g.Digest:
		return "the trace was changed"
	case a.By != b.By || !slices.EqualFunc(a.Objectives, b.Objectives, same) || a.Confidence != b.Confidence || a.Requests != b.Requests || a.Fixed != b.Fixed:
		return "it looks for something else"
	case a.Min != b.Min || a.Max != b.Max:
		return "its loads have other bounds"
	}
	return ""
}

// same compares objectives, however they were written.
func same(a, b metrics.Objective) bool {
	return a.SLO == b.SLO && math.Abs(a.Share-b.Share) < 1e-9
}

// A Folder is a search on disk, held by one process at a time.
type Folder struct {
	Path string
	*File
	lock *os.File
}

// Open begins the search that fresh describes in a folder, or goes on with the
// one that is there; begun says which.
func Open(path string, fresh *File) (f *Folder, begun bool, err error) {
	f = &Folder{Path: path, File: fresh}
	for _, name := range []string{replay.ManifestFile, "plan.json"} {
		if _, err := os.Lstat(filepath.Join(path, name)); err == nil {
			return nil, false, fmt.Errorf("%s holds %s, which is of something else: name another directory with -o", path, name)
		}
	}
	if err := os.MkdirAll(filepath.Join(path, RunsDir), 0o755); err != nil {
		return nil, false, err
	}
	if f.lock, err = os.OpenFile(filepath.Join(path, ".lock"), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, false, err
	}
	if err := durable.LockFile(f.lock); err != nil {
		f.lock.Close()
		return nil, false, fmt.Errorf("%s: another process is playing this search", path)
	}
	old, err := Read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, false, f.Save()
	case err != nil:
		f.Close()
		return nil, false, err
	}
	if d := old.Differs(fresh); d != "" {
		f.Close()
		return nil, false, fmt.Errorf("%s is another search: %s", path, d)
	}
	old.Spec = fresh.Spec
	f.File = old
	return f, true, nil
}

// Read reads the search of a folder. The error wraps [fs.ErrNotExist] if there
// is none.
func Read(path string) (*File, error) {
	f := new(File)
	name := filepath.Join(path, FileName)
	if err := durable.ReadJSON(name, maxFile, f); err != nil {
		return nil, err
	}
	if f.Version != Version {
		return nil, fmt.Errorf("%s: version %d, want %d", name, f.Version, Version)
	}
	if err := f.Spec.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for i := range f.Runs {
		r := &f.Runs[i]
		if r.Number != i+1 || r.Measured == nil || len(r.Objectives) != len(f.Spec.Objectives) {
			return nil, fmt.Errorf("%s: run %d of the list is not one of this search", name, i+1)
		}
	}
	return f, nil
}

// Save writes search.json and search.md.
func (f *Folder) Save() error {
	f.Result = f.Spec.Result(f.Runs)
	if err := durable.WriteJSON(filepath.Join(f.Path, FileName), f.File); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(f.Path, MarkdownName), f.Markdown())
}

// Aside renames what is left of a run that was not finished, so that nothing of
// it is lost and its name is free. There need not be anything.
func (f *Folder) Aside(dir string) error {
	return durable.Aside(filepath.Join(f.Path, dir), "partial")
}

// Close lets others in.
func (f *Folder) Close() error { return f.lock.Close() }
