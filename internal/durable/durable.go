// Package durable has what files that survive a crash need of the system.
package durable

import (
	"errors"
	"os"
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
