// Package durable has what files that survive a crash need of the system.
package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// SyncDir makes a change of names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// WriteJSON replaces a file, atomically and so that it survives a crash.
func WriteJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(name, append(b, '\n'))
}

// WriteFile replaces a file, atomically and so that it survives a crash.
func WriteFile(name string, b []byte) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return SyncDir(dir)
}

// Aside renames a folder or file to NAME.WHY-1, or the next number that is free,
// so that nothing of it is lost and its name is. There need not be anything.
func Aside(name, why string) error {
	for n := 1; ; n++ {
		to := fmt.Sprintf("%s.%s-%d", name, why, n)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		err := os.Rename(name, to)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, SyncDir(filepath.Dir(name)))
	}
}

// ReadJSON reads a regular file of at most so many bytes.
func ReadJSON(name string, most int64, v any) error {
	s, err := os.Stat(name)
	if err != nil {
		return err
	}
	if s.Size() > most || !s.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file of at most %d bytes", name, most)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
