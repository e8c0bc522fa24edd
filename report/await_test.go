package report

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Merge is to wait for shards that are not there, are being played, and have
// ended, in this order.
func TestAwait(t *testing.T) {
	dir := t.TempDir()
	pattern := []string{filepath.Join(dir, "shard-*")}
	rows := played(60)
	write := func(i int, state string) {
		part := rows[i*20 : (i+1)*20]
		m := manifest(part, len(rows), i, 3)
		m.State = state
		name := filepath.Join(dir, "shard-"+string(rune('a'+i)))
		os.Remove(filepath.Join(name, manifestFile))
		if err := errors.Join(os.MkdirAll(name, 0o755), m.write(filepath.Join(name, manifestFile))); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "no shard is there yet"},
		{func() { os.Mkdir(filepath.Join(dir, "shard-a"), 0o755) }, "no shard is there yet"},
		{func() { write(0, StateRunning) }, "0 of 3 shards have ended"},
		{func() { write(0, StateComplete); write(2, StateComplete) }, "2 of 3 shards have ended"},
		{func() { write(1, "partial") }, ""},
	} {
		step.do()
		_, waiting, err := lookFor(pattern)
		if err != nil || waiting != step.want {
			t.Fatalf("%q, %v; want %q", waiting, err, step.want)
		}
	}
	dirs, err := Await(t.Context(), pattern, time.Hour, func(s string) { t.Errorf("waits: %s", s) })
	if err != nil || len(dirs) != 3 {
		t.Fatalf("%v, %v", dirs, err)
	}
	// What is not there when the time is up is Merge's to name.
	os.RemoveAll(filepath.Join(dir, "shard-b"))
	var told []string
	if dirs, err = Await(t.Context(), pattern, time.Millisecond, func(s string) { told = append(told, s) }); err != nil || len(dirs) != 2 || len(told) != 1 {
		t.Fatalf("%v, %v, told %q", dirs, err, told)
	}
}
