package main

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"reprise/internal/traceout"
)

// Copies are the runs of object storage that are read, in a temporary folder.
// Traces that are no run are not among them: those are read where they lie.
type copies struct {
	root string
	at   map[string]string
}

// close removes the copies.
func (k *copies) close() {
	if k.root != "" {
		os.RemoveAll(k.root)
	}
}

// local says where a run lies.
func (k *copies) local(name string) string {
	if dir, ok := k.at[name]; ok {
		return dir
	}
	return name
}

// fetchRuns fetches those of the runs that lie in object storage, and returns the
// names of all: a pattern there stands for the runs that it matches.
func (k *copies) fetchRuns(ctx context.Context, names []string) (runs []string, err error) {
	for _, name := range names {
		if !traceout.Remote(name) {
			runs = append(runs, name)
			continue
		}
		s, err := traceout.RemoteStore()
		if err != nil {
			return nil, err
		}
		found, err := traceout.FindRuns(ctx, s, name)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			runs = append(runs, name)
			continue
		}
		for _, run := range found {
			if _, err := k.fetch(ctx, run); err != nil {
				return nil, err
			}
		}
		runs = append(runs, found...)
	}
	return runs, nil
}

// fetch fetches a folder of object storage; any other is where it is.
func (k *copies) fetch(ctx context.Context, name string) (dir string, err error) {
	if dir, ok := k.at[name]; ok || !traceout.Remote(name) {
		return k.local(name), nil
	} else if k.root == "" {
		if k.root, err = os.MkdirTemp("", "reprise-"); err != nil {
			return dir, err
		}
		k.at = map[string]string{}
	}
	s, err := traceout.RemoteStore()
	if err != nil {
		return "", err
	}
	// What names a run, or an experiment, by its folder finds that.
	dir = filepath.Join(k.root, strconv.Itoa(len(k.at)), path.Base(traceout.Key(name)))
	if err := traceout.FetchFolder(ctx, s, name, dir, false, func(string, string) error { return nil }); err != nil {
		return "", err
	}
	k.at[name] = dir
	return dir, nil
}
