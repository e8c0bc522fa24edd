package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// checkReproducible builds a release into out, and another from a copy of the
// commit in another folder with an empty cache, and compares them.
func (o options) checkReproducible() error {
	if err := o.release(); err != nil {
		return err
	}
	root, err := filepath.Abs(o.root)
	if err != nil {
		return err
	}
	stamp, err := readStamp(root, o.version)
	if err != nil {
		return err
	}
	if strings.HasSuffix(stamp.version, "+dirty") {
		return errors.New("the tree has changes: there is no commit to build a second time")
	}
	dir, err := os.MkdirTemp("", "release-again-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	again := o
	again.root, again.out, again.goCache = filepath.Join(dir, "source"), filepath.Join(dir, "dist"), filepath.Join(dir, "cache")
	if out, err := exec.Command("git", "clone", "--quiet", "--no-hardlinks", root, again.root).CombinedOutput(); err != nil {
		return fmt.Errorf("git clone: %w\n%s", err, out)
	}
	// In a clone of a worktree, the branch of that worktree.
	checkout := exec.Command("git", "checkout", "--quiet", stamp.revision)
	checkout.Dir = again.root
	if out, err := checkout.CombinedOutput(); err != nil {
		return fmt.Errorf("git checkout: %w\n%s", err, out)
	}
	say("a second time, from %s", again.root)
	if err := again.release(); err != nil {
		return err
	}
	return compareReleases(o.out, again.out)
}

// compareReleases says which files of two folders differ.
func compareReleases(a, b string) error {
	first, err := sumsOf(a)
	if err != nil {
		return err
	}
	second, err := sumsOf(b)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range sortedKeys(first) {
		if second[name] != first[name] {
			errs = append(errs, fmt.Errorf("%s differs between two builds", name))
		}
		delete(second, name)
	}
	for _, name := range sortedKeys(second) {
		errs = append(errs, fmt.Errorf("%s is in the second build alone", name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	say("%d files, the same in both builds", len(first))
	return nil
}
