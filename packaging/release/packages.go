package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// packages writes a Debian and an RPM package for each architecture of Linux,
// with NVML in its replay unless there is no such build.
func (r *release) packages() error {
	for _, arch := range []string{"amd64", "arm64"} {
		bins, nvml := r.bins[target{"linux", arch, true}], true
		if bins == "" {
			bins, nvml = r.bins[target{"linux", arch, false}], false
		}
		if bins == "" {
			continue
		}
		for _, format := range []string{"deb", "rpm"} {
			if r.quick && format != "deb" {
				continue
			}
			if err := r.pack(format, arch, bins, nvml); err != nil {
				return fmt.Errorf("%s, %s: %w", format, arch, err)
			}
		}
	}
	return nil
}

func (r *release) pack(format, arch, bins string, nvml bool) error {
	contents, err := r.contents(format, bins)
	if err != nil {
		return err
	}
	about := `records production LLM traffic and plays it again
Capture records what traffic of an LLM service looked like: lengths, timings and
keyed hashes, no text. Synth learns it and writes more of it, replay plays it
against vLLM, SGLang and others and measures them, report compares runs.`
	info := nfpm.WithDefaults(&nfpm.Info{
		Name: "reprise", Arch: arch, Platform: "linux",
		Version: packageVersion(r.stamp.version), VersionSchema: "none", Release: "1",
		Section: "net", Priority: "optional", Maintainer: "Reprise <reprise@localhost>",
		Description: about, License: "MIT", MTime: r.stamp.date, DisableGlobbing: true,
	})
	info.Overridables = nfpm.Overridables{
		Contents:   contents,
		Recommends: []string{"ca-certificates"},
		Umask:      0o022,
		Scripts: nfpm.Scripts{
			PostInstall: filepath.Join(r.root, "packaging/scripts/postinstall.sh"),
			PreRemove:   filepath.Join(r.root, "packaging/scripts/preremove.sh"),
			PostRemove:  filepath.Join(r.root, "packaging/scripts/postremove.sh"),
		},
		Deb: nfpm.Deb{Compression: "gzip"},
		RPM: nfpm.RPM{Compression: "gzip", BuildHost: "localhost", Summary: "records production LLM traffic and plays it again"},
	}
	if nvml {
		libc := fmt.Sprintf("libc6 (>= %d.%d)", maxGlibc[0], maxGlibc[1])
		if format == "rpm" {
			libc = fmt.Sprintf("glibc >= %d.%d", maxGlibc[0], maxGlibc[1])
		}
		info.Depends = []string{libc}
	}
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return err
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(r.out, packager.ConventionalFileName(info)))
	if err != nil {
		return err
	}
	return errors.Join(packager.Package(info, out), out.Close())
}

// contents are the files of a package and their places.
func (r *release) contents(format, bins string) (files.Contents, error) {
	var list files.Contents
	add := func(from, to string, mode os.FileMode) {
		list = append(list, &files.Content{Source: from, Destination: to, FileInfo: &files.ContentFileInfo{Mode: mode, Owner: "root", Group: "root", MTime: r.stamp.date}})
	}
	zsh := "/usr/share/zsh/vendor-completions/" // of Debian; elsewhere:
	if format == "rpm" {
		zsh = "/usr/share/zsh/site-functions/"
	}
	for _, p := range programs {
		add(filepath.Join(bins, p), "/usr/bin/"+p, 0o755)
		page, err := r.compressed(filepath.Join("man", p+".1"))
		if err != nil {
			return nil, err
		}
		add(page, "/usr/share/man/man1/"+p+".1.gz", 0o644)
		add(filepath.Join(r.share, "completions/bash", p), "/usr/share/bash-completion/completions/"+p, 0o644)
		add(filepath.Join(r.share, "completions/zsh", "_"+p), zsh+"_"+p, 0o644)
		add(filepath.Join(r.share, "completions/fish", p+".fish"), "/usr/share/fish/vendor_completions.d/"+p+".fish", 0o644)
	}
	notice := filepath.Join(r.work, "THIRD_PARTY")
	if err := os.WriteFile(notice, []byte(r.notice), 0o644); err != nil {
		return nil, err
	}
	add(notice, "/usr/share/doc/reprise/THIRD_PARTY", 0o644)
	licence := "/usr/share/doc/reprise/copyright"
	if format == "rpm" {
		licence = "/usr/share/licenses/reprise/LICENSE"
	}
	add(filepath.Join(r.root, "LICENSE"), licence, 0o644)
	docs, err := filepath.Glob(filepath.Join(r.root, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	for _, d := range docs {
		add(d, "/usr/share/doc/reprise/"+filepath.Base(d), 0o644)
	}
	units, err := os.ReadDir(filepath.Join(r.root, "packaging/systemd"))
	if err != nil {
		return nil, err
	}
	for _, u := range units {
		add(filepath.Join(r.root, "packaging/systemd", u.Name()), "/usr/lib/systemd/system/"+u.Name(), 0o644)
	}
	settings, err := os.ReadDir(filepath.Join(r.root, "packaging/default"))
	if err != nil {
		return nil, err
	}
	for _, s := range settings {
		add(filepath.Join(r.root, "packaging/default", s.Name()), "/etc/default/"+s.Name(), 0o644)
		list[len(list)-1].Type = files.TypeConfigNoReplace // what an administrator set stays
	}
	return list, nil
}

// compressed returns a gzip of a generated file, of no time and no name.
func (r *release) compressed(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(r.share, name))
	if err != nil {
		return "", err
	}
	var z bytes.Buffer
	w, err := gzip.NewWriterLevel(&z, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(w, bytes.NewReader(b))
	if err := errors.Join(err, w.Close()); err != nil {
		return "", err
	}
	file := filepath.Join(r.work, filepath.Base(name)+".gz")
	return file, os.WriteFile(file, z.Bytes(), 0o644)
}
