// Release builds what users install: archives of binaries for each system, Debian
// and RPM packages, a container image, a bill of materials and checksums.
//
//	go run . -root ../.. -out ../../dist
//
// Every file is the same, byte for byte, whenever and wherever it is built from
// one commit with one toolchain: times are the commit's, paths are trimmed, and
// the C compiler of the build with NVML is pinned.
//
// It is a module of its own, so that what writes packages is no dependency of
// what is in them.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if t := os.Getenv(zigTargetEnv); t != "" {
		os.Exit(compile(t, os.Args[1:]))
	}
	var o options
	flag.StringVar(&o.root, "root", ".", "`DIR` of the project")
	flag.StringVar(&o.out, "out", "dist", "write to `DIR`, which is replaced")
	flag.StringVar(&o.version, "version", "", "`VERSION` to stamp, such as v1.2.0; by default from the tags of the commit")
	flag.BoolVar(&o.quick, "quick", false, "only the static build, Debian package and bill of materials of this machine's platform: a check in seconds")
	flag.StringVar(&o.only, "only", "", "only these `PLATFORMS`, such as linux_amd64,linux_amd64_nvml")
	check := flag.Bool("check", false, "build a second time from a copy of the tree, without caches, and compare every byte")
	flag.Parse()
	err := func() error {
		if flag.NArg() > 0 {
			return fmt.Errorf("want no arguments, got %q", flag.Arg(0))
		}
		if *check {
			return o.checkReproducible()
		}
		return o.release()
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

type options struct {
	root, out, version string
	only               string // platforms, by comma; empty: all
	quick              bool
	goCache            string // empty: the user's
}

// A release is one build of everything.
type release struct {
	options
	stamp  stamp
	work   string // binaries, one folder a target, and generated files
	bins   map[target]string
	share  string // man pages and completions
	sbom   *sbom
	notice string // THIRD_PARTY
}

func (o options) release() (err error) {
	r := &release{options: o, bins: map[target]string{}}
	if r.root, err = filepath.Abs(o.root); err != nil {
		return err
	}
	if r.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	if r.stamp, err = readStamp(r.root, o.version); err != nil {
		return err
	}
	if r.work, err = os.MkdirTemp("", "release-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.work)
	if err := clearOut(r.out); err != nil {
		return err
	}
	say("version %s, commit %s", r.stamp.version, r.stamp.revision)
	for _, step := range []struct {
		name  string
		do    func() error
		quick bool
	}{
		{"binaries", r.buildAll, true},
		{"man pages and completions", r.generate, true},
		{"licences and bill of materials", r.materials, true},
		{"archives", r.archives, false},
		{"packages", r.packages, true},
		{"image", r.image, false},
		{"checksums", func() error { return checksums(r.out) }, true},
	} {
		if r.quick && !step.quick {
			continue
		}
		say("%s", step.name)
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return list(r.out)
}

// clearOut empties the folder of an earlier release. A folder of anything else
// is left alone.
func clearOut(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "reprise") && e.Name() != sumsFile {
			return fmt.Errorf("%s holds %s, which no release wrote: name another folder with -out", dir, e.Name())
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o755)
}

const sumsFile = "SHA256SUMS"

// checksums writes SHA256SUMS, as sha256sum -c reads it.
func checksums(dir string) error {
	sums, err := sumsOf(dir)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, name := range sortedKeys(sums) {
		fmt.Fprintf(&b, "%s  %s\n", sums[name], name)
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), []byte(b.String()), 0o644)
}

// sumsOf returns the SHA-256 of each file in dir.
func sumsOf(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		sums[e.Name()] = hex.EncodeToString(h.Sum(nil))
	}
	return sums, nil
}

// list prints what is in dir.
func list(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Printf("%8.1f MB  %s\n", float64(info.Size())/1e6, filepath.Join(dir, e.Name()))
	}
	return nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "release: "+format+"\n", args...) }

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
