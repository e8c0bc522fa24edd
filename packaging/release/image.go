package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// imageUser is the user of the image, nobody in particular.
const imageUser = 65532

// image writes one image of all programs, for the Linux platforms, as an OCI
// layout in a tar file: podman load, docker load and skopeo read it.
func (r *release) image() error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, t := range r.targets() {
		if t.os != "linux" || t.nvml {
			continue
		}
		image, err := r.platformImage(t)
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: t.os, Architecture: t.arch}},
		})
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(manifest.Manifests) == 0 {
		say("no image: no Linux binaries from %s", runtime.GOOS)
		return nil
	}
	// The layout's own index names the image; the image is an index again.
	dir := filepath.Join(r.work, "image")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	tag := r.stamp.fileVersion()
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})); err != nil {
		return err
	}
	files, err := tree(dir, "")
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(r.out, "reprise_"+tag+"_image.tar"))
	if err != nil {
		return err
	}
	return errors.Join(writeTar(out, files, r.stamp.date), out.Close())
}

func (r *release) platformImage(t target) (v1.Image, error) {
	roots, err := certificates()
	if err != nil {
		return nil, err
	}
	licence, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		return nil, err
	}
	base := []file{
		{name: "etc/", mode: 0o755},
		// Nobody is whom "capture packets" becomes.
		{name: "etc/passwd", data: fmt.Sprintf("root:x:0:0:root:/:/sbin/nologin\nreprise:x:%d:%d:Reprise:/data:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n", imageUser, imageUser), mode: 0o644},
		{name: "etc/group", data: fmt.Sprintf("root:x:0:\nreprise:x:%d:\nnogroup:x:65534:\n", imageUser), mode: 0o644},
		{name: "etc/ssl/certs/ca-certificates.crt", data: roots, mode: 0o644},
		{name: "tmp/", mode: 0o1777},
		{name: "data/", mode: 0o755, uid: imageUser},
		{name: "usr/share/doc/reprise/LICENSE", data: string(licence), mode: 0o644},
		{name: "usr/share/doc/reprise/THIRD_PARTY", data: r.notice + caNotice, mode: 0o644},
	}
	var bins []file
	for _, p := range programs {
		bins = append(bins, file{name: "usr/bin/" + p, from: filepath.Join(r.bins[t], p), mode: 0o755})
	}
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	for _, l := range []struct {
		about string
		files []file
	}{{"users, certificates, licences", base}, {"programs", bins}} {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			var b bytes.Buffer
			err := writeTar(&b, l.files, r.stamp.date)
			return io.NopCloser(&b), err
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: layer, MediaType: types.OCILayer,
			History: v1.History{Created: v1.Time{Time: r.stamp.date}, CreatedBy: "make release", Comment: l.about}}); err != nil {
			return nil, err
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = t.os, t.arch
	config.Created = v1.Time{Time: r.stamp.date}
	config.Config = v1.Config{
		User:       fmt.Sprintf("%d:%d", imageUser, imageUser),
		Env:        []string{"PATH=/usr/bin"},
		WorkingDir: "/data",
		// No entry point: one image is all commands, and the first argument
		// says which.
		Cmd: []string{"replay", "--help"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "reprise",
			"org.opencontainers.image.description": "records production LLM traffic and plays it again",
			"org.opencontainers.image.version":     r.stamp.version,
			"org.opencontainers.image.revision":    r.stamp.revision,
			"org.opencontainers.image.created":     r.stamp.date.Format("2006-01-02T15:04:05Z"),
			"org.opencontainers.image.licenses":    "MIT",
		},
	}
	return mutate.ConfigFile(image, config)
}

const caNotice = `
================================================================================
etc/ssl/certs/ca-certificates.crt of the container image
================================================================================

The certificates are those of Mozilla's root programme (NSS), by way of
golang.org/x/crypto/x509roots, under the Mozilla Public License 2.0.
`

// certificates are the roots that servers are verified against. A scratch image
// has none, and https engines and buckets need some. Those with a constraint
// that a PEM file cannot say are left out.
func certificates() (string, error) {
	var b bytes.Buffer
	n := 0
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		n++
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return "", err
		}
	}
	if n < 50 {
		return "", fmt.Errorf("%d root certificates: the bundle is not what it was", n)
	}
	return b.String(), nil
}
