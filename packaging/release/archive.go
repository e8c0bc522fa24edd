package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// A file is one of an archive: of a path here, or of data.
type file struct {
	name string // with slashes, no leading one; a folder ends in one
	from string
	data string
	mode int64
	uid  int
}

// archives writes one a target: programs, manual, completions, licences.
func (r *release) archives() error {
	for _, t := range r.targets() {
		top := "reprise_" + r.stamp.fileVersion() + "_" + t.String()
		files := []file{
			{name: "LICENSE", from: filepath.Join(r.root, "LICENSE"), mode: 0o644},
			{name: "THIRD_PARTY", data: r.notice, mode: 0o644},
		}
		for _, p := range programs {
			files = append(files, file{name: "bin/" + p, from: filepath.Join(r.bins[t], p), mode: 0o755})
		}
		shared, err := tree(r.share, "share/")
		if err != nil {
			return err
		}
		files = append(files, shared...)
		for i := range files {
			files[i].name = path.Join(top, files[i].name)
		}
		out, err := os.Create(filepath.Join(r.out, top+".tar.gz"))
		if err != nil {
			return err
		}
		if err := errors.Join(writeTarGz(out, files, r.stamp.date), out.Close()); err != nil {
			return err
		}
	}
	return nil
}

// tree lists the files below dir, in order, with prefix before their names.
func tree(dir, prefix string) ([]file, error) {
	var files []file
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		files = append(files, file{name: prefix + filepath.ToSlash(rel), from: p, mode: 0o644})
		return err
	})
	return files, err
}

func writeTarGz(w io.Writer, files []file, when time.Time) error {
	z := gzip.NewWriter(w)
	return errors.Join(writeTar(z, files, when), z.Close())
}

// writeTar writes files as they are given, all of one time, and of root unless
// they say so.
func writeTar(w io.Writer, files []file, when time.Time) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, ModTime: when, Uid: f.uid, Gid: f.uid, Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Size: int64(len(f.data))}
		var content io.Reader = strings.NewReader(f.data)
		switch {
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		case f.from != "":
			open, err := os.Open(f.from)
			if err != nil {
				return err
			}
			defer open.Close()
			info, err := open.Stat()
			if err != nil {
				return err
			}
			h.Size, content = info.Size(), open
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(t, content); err != nil {
			return err
		}
	}
	return t.Close()
}
