package durable

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestAside frees a name again and again, and loses nothing of it.
func TestAside(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "run")
	for range 2 {
		if err := os.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := Aside(name, "partial"); err != nil {
			t.Fatal(err)
		}
	}
	if err := Aside(name, "partial"); err != nil {
		t.Errorf("where there is nothing: %v", err)
	}
	var got []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := []string{"run.partial-1", "run.partial-2"}; !slices.Equal(got, want) {
		t.Errorf("the folder holds %q, want %q", got, want)
	}
}
