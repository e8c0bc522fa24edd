package main

import (
	"archive/tar"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestPackageVersion(t *testing.T) {
	for v, want := range map[string]string{
		"v1.2.3":                             "1.2.3",
		"v1.2.3-rc.1":                        "1.2.3~rc.1",
		"v0.0.0-20261128130140-d81820cf5945": "0.0.0~20261128130140.d81820cf5945",
		"v0.0.0-20261128130140-d81820cf5945+dirty": "0.0.0~20261128130140.d81820cf5945+dirty",
	} {
		if got := packageVersion(v); got != want {
			t.Errorf("packageVersion(%s) = %s, want %s", v, got, want)
		}
	}
}

// The version comes from the nearest tag, the time from the commit, and changes
// that are in no commit show.
func TestReadStamp(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git here")
	}
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=x", "-c", "user.email=x@localhost"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	check := func(version, want string) {
		t.Helper()
		s, err := readStamp(dir, version)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(s.version, want) || !s.date.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
			t.Errorf("readStamp = %+v, want version %s", s, want)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	git("init", "-q")
	git("commit", "-q", "--allow-empty", "-m", "one")
	check("", "v0.0.0-20260102030405-")
	check("v2.0.0", "v2.0.0")
	git("tag", "v1.4.0")
	check("", "v1.4.0")
	git("commit", "-q", "--allow-empty", "-m", "two")
	check("", "v1.4.1-0.20260102030405-")
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := readStamp(dir, "v2.0.0"); err != nil || s.version != "v2.0.0+dirty" {
		t.Errorf("with a change: %q, %v", s.version, err)
	}
	if _, err := readStamp(dir, "2.0"); err == nil {
		t.Error("-version 2.0 was taken")
	}
	if _, err := readStamp(t.TempDir(), "v2.0.0"); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Errorf("no repository: %v", err)
	}
}

func TestLicences(t *testing.T) {
	const bsd2 = "Redistributions in binary form must reproduce the above copyright notice"
	for _, tt := range []struct {
		text, want string
		fit        bool
	}{
		{"Permission is hereby granted, free of charge, to any person\nobtaining a copy", "[MIT]", true},
		{"Apache License\n   Version 2.0, January 2004", "[Apache-2.0]", true},
		{bsd2, "[BSD-2-Clause]", true},
		{bsd2 + "\n * Neither the name may be used to endorse or promote products derived from\n * this software", "[BSD-3-Clause]", true},
		{"Mozilla Public License Version 2.0", "[MPL-2.0]", true},
		{"GNU AFFERO GENERAL PUBLIC LICENSE\n  Version 3", "[AGPL-3.0]", false},
		{"GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991", "[GPL]", false},
		{"Permission is hereby granted, free of charge, to any person obtaining a copy ... GNU Lesser General Public License, version 2.1", "[MIT LGPL]", false},
		{"All rights reserved.", "[]", false},
	} {
		got := identify(tt.text)
		if fmt.Sprint(got) != tt.want {
			t.Errorf("identify(%q) = %v, want %s", tt.text, got, tt.want)
		}
		if err := (&material{name: "m", licences: got}).fit(); (err == nil) != tt.fit {
			t.Errorf("under %v: %v", got, err)
		}
	}
}

// A binary that needs its C library is not one of a static build, nor one with
// NVML: the checks of a release can fail.
func TestBinaryChecks(t *testing.T) {
	f, err := elf.Open("/bin/ls")
	if err != nil {
		t.Skip("no ELF binary here")
	}
	defer f.Close()
	if checkStatic(f) == nil {
		t.Skip("ls is static here")
	}
	if err := checkNVML(f); err == nil {
		t.Error("ls passes for a program with NVML")
	}
	for v, want := range map[string]bool{"2.2.5": false, "2.28": false, "2.29": true, "3.0": true, "PRIVATE": true} {
		if newer(v, maxGlibc) != want {
			t.Errorf("newer(%s) = %t", v, !want)
		}
	}
}

// fakeRelease has small files in the place of binaries.
func fakeRelease(t *testing.T, when time.Time) *release {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	r := &release{options: options{root: root, out: t.TempDir()}, work: t.TempDir(), bins: map[target]string{}, notice: "of others\n",
		stamp: stamp{version: "v1.2.3", revision: strings.Repeat("0", 40), date: time.Unix(1700000000, 0).UTC()}}
	r.share = filepath.Join(r.work, "share")
	put := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, when, when); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range r.targets() {
		r.bins[tt] = filepath.Join(r.work, tt.String())
		for _, p := range programs {
			put(filepath.Join(r.bins[tt], p), "#!/bin/sh\necho "+p+" "+tt.String()+"\n")
		}
	}
	for _, p := range programs {
		for _, f := range []string{"man/" + p + ".1", "completions/bash/" + p, "completions/zsh/_" + p, "completions/fish/" + p + ".fish"} {
			put(filepath.Join(r.share, f), f)
		}
	}
	return r
}

func (r *release) packAll(t *testing.T) {
	t.Helper()
	for _, step := range []func() error{r.archives, r.packages, r.image, func() error { return checksums(r.out) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// The same input at another time and in another folder gives the same bytes.
func TestPackingIsReproducible(t *testing.T) {
	a, b := fakeRelease(t, time.Now()), fakeRelease(t, time.Now().Add(-time.Hour))
	a.packAll(t)
	time.Sleep(1100 * time.Millisecond) // times in archives are whole seconds
	b.packAll(t)
	if err := compareReleases(a.out, b.out); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(b.out, sumsFile), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if compareReleases(a.out, b.out) == nil {
		t.Error("a changed file went unnoticed")
	}
	sums := exec.Command("sha256sum", "--check", "--quiet", sumsFile)
	sums.Dir = a.out
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
}

func TestPackages(t *testing.T) {
	r := fakeRelease(t, time.Now())
	if err := r.packages(); err != nil {
		t.Fatal(err)
	}
	wanted := []string{"/usr/bin/replay", "/usr/share/man/man1/capture.1.gz", "/usr/lib/systemd/system/reprise-capture-proxy.socket",
		"/usr/lib/systemd/system/reprise-capture-packets.service", "/etc/default/reprise-capture-proxy", "/usr/share/bash-completion/completions/replay", "/usr/share/doc/reprise/THIRD_PARTY"}
	for _, tt := range []struct {
		tool, file, name string
		lists            [][]string // of files, of facts
		facts            []string
	}{
		{"dpkg-deb", "reprise_1.2.3-1_arm64.deb", "deb", [][]string{{"-c"}, {"-f"}, {"-I"}}, []string{"Architecture: arm64", "libc6 (>= 2.28)", "conffiles"}},
		{"rpm", "reprise-1.2.3-1.x86_64.rpm", "rpm", [][]string{{"-qpl"}, {"-qp", "--info"}, {"-qp", "--requires"}, {"-qpc"}}, []string{"x86_64", "glibc >= 2.28"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := exec.LookPath(tt.tool); err != nil {
				t.Skipf("no %s here", tt.tool)
			}
			var all strings.Builder
			for _, args := range tt.lists {
				out, err := exec.Command(tt.tool, append(args, filepath.Join(r.out, tt.file))...).CombinedOutput()
				if err != nil {
					t.Fatalf("%s %v: %v\n%s", tt.tool, args, err, out)
				}
				all.Write(out)
			}
			for _, w := range append(wanted, tt.facts...) {
				if !strings.Contains(all.String(), w) {
					t.Errorf("%s says nothing of %s:\n%s", tt.file, w, all.String())
				}
			}
		})
	}
}

func TestImage(t *testing.T) {
	r := fakeRelease(t, time.Now())
	if err := r.image(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f, err := os.Open(filepath.Join(r.out, "reprise_1.2.3_image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := outer.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "1.2.3" {
		t.Fatalf("index.json = %+v, %v", m, err)
	}
	index, err := outer.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	platforms, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		if p := platforms.Manifests[i].Platform; p.OS != "linux" || p.Architecture != arch {
			t.Errorf("platform %d is %v, want linux/%s", i, p, arch)
		}
		image, err := index.Image(platforms.Manifests[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Config.User != "65532:65532" || config.Architecture != arch || config.Config.Labels["org.opencontainers.image.version"] != "v1.2.3" {
			t.Errorf("%s: config %+v", arch, config)
		}
		found := map[string]int64{}
		flat := mutate.Extract(image)
		for tr := tar.NewReader(flat); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			found[h.Name] = h.Mode
		}
		flat.Close()
		for name, mode := range map[string]int64{"usr/bin/replay": 0o755, "usr/bin/capture": 0o755, "etc/ssl/certs/ca-certificates.crt": 0o644, "tmp": 0o1777, "data": 0o755} {
			got, ok := found[name]
			if !ok {
				got, ok = found[name+"/"]
			}
			if !ok || got != mode {
				t.Errorf("%s: %s has mode %o (%t), want %o", arch, name, got, ok, mode)
			}
		}
	}
}

// A folder that holds something else is not emptied.
func TestOutIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := clearOut(dir); err == nil || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("clearOut = %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}
