package report

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// awaitEvery is how often Await looks.
const awaitEvery = 2 * time.Second

// Await returns the run directories that the patterns of [filepath.Match] name,
// once every shard of their run is there and has ended. When the time is up it
// returns those that are there: Merge says what is missing. say is told what is
// waited for whenever that changes.
func Await(ctx context.Context, patterns []string, limit time.Duration, say func(string)) ([]string, error) {
	deadline := time.Now().Add(limit)
	last := ""
	for {
		dirs, waiting, err := lookFor(patterns)
		if err != nil || waiting == "" {
			return dirs, err
		}
		if waiting != last {
			say(waiting)
			last = waiting
		}
		if !time.Now().Before(deadline) {
			return dirs, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(min(awaitEvery, time.Until(deadline))):
		}
	}
}

// lookFor says which of the runs that the patterns name are there and what of
// the whole is not, or is not at its end.
func lookFor(patterns []string) (dirs []string, waiting string, err error) {
	for _, p := range patterns {
		found, err := filepath.Glob(p)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", p, err)
		}
		dirs = append(dirs, found...)
	}
	slices.Sort(dirs)
	dirs = slices.Compact(dirs)
	there := dirs[:0]
	for _, dir := range dirs {
		// One that is being started has no run.json yet.
		if _, err := ReadManifest(dir); !errors.Is(err, fs.ErrNotExist) {
			there = append(there, dir)
		}
	}
	if len(there) == 0 {
		return there, "no shard is there yet", nil
	}
	shards, err := loadShards(there)
	if err != nil {
		return nil, "", err
	}
	ended := map[int]bool{}
	for _, s := range shards {
		ended[s.index] = s.m.State != StateRunning
	}
	n := 0
	for _, e := range ended {
		if e {
			n++
		}
	}
	if of := max(1, shards[0].of); n < of {
		return there, fmt.Sprintf("%d of %d shards have ended", n, of), nil
	}
	return there, "", nil
}
