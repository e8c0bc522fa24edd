package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// A material is something of others that is in what ships.
type material struct {
	name, version string
	purl          string
	licences      []string // SPDX identifiers
	texts         []text
}

// A text is a licence or a notice, as its file has it.
type text struct{ file, text string }

type sbom struct {
	bom *cdx.BOM
}

// materials finds what is in the binaries, by what they say themselves, with
// licences. A licence that is not known to be fit for shipping is an error.
func (r *release) materials() error {
	modules := map[string]string{} // path to version
	goVersion := ""
	for _, dir := range r.bins {
		for _, p := range programs {
			info, err := buildinfo.ReadFile(filepath.Join(dir, p))
			if err != nil {
				return err
			}
			goVersion = info.GoVersion
			for _, d := range info.Deps {
				if d.Replace != nil {
					return fmt.Errorf("%s is replaced by %s: a release is of published modules", d.Path, d.Replace.Path)
				}
				modules[d.Path] = d.Version
			}
		}
	}
	folders, err := linkedFolders(r.root)
	if err != nil {
		return err
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(goVersion, "go")
	std := &material{name: "Go standard library", version: version, purl: "pkg:golang/std@" + version}
	if err := std.read(strings.TrimSpace(string(goroot)), []string{"."}); err != nil {
		return err
	}
	list := []*material{std}
	for _, path := range sortedKeys(modules) {
		dir, err := moduleDir(r.root, path)
		if err != nil {
			return err
		}
		m := &material{name: path, version: modules[path], purl: "pkg:golang/" + path + "@" + modules[path]}
		if err := m.read(dir, folders[path]); err != nil {
			return err
		}
		list = append(list, m)
	}
	chart, err := uplot(r.root)
	if err != nil {
		return err
	}
	list = append(list, chart)
	for _, m := range list {
		if err := m.fit(); err != nil {
			return err
		}
	}
	r.notice = thirdParty(list)
	r.sbom = &sbom{r.bom(list)}
	f, err := os.Create(filepath.Join(r.out, "reprise_"+r.stamp.fileVersion()+".cdx.json"))
	if err != nil {
		return err
	}
	return errors.Join(r.sbom.write(f), f.Close())
}

// linkedFolders returns, for each module, the folders of its packages that are
// in the programs, and those above them, from the module's root.
func linkedFolders(root string) (map[string][]string, error) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}} {{.Dir}}{{end}} {{.Dir}}", "./cmd/...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -deps: %w", err)
	}
	folders := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue // of the standard library
		}
		rel, err := filepath.Rel(f[1], f[2])
		if err != nil {
			return nil, err
		}
		for ; ; rel = filepath.Dir(rel) {
			if !slices.Contains(folders[f[0]], rel) {
				folders[f[0]] = append(folders[f[0]], rel)
			}
			if rel == "." {
				break
			}
		}
	}
	return folders, nil
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|copyright)([.-].*)?$`)

// read takes the texts that are in folders of dir.
func (m *material) read(dir string, folders []string) error {
	if !slices.Contains(folders, ".") {
		folders = append(folders, ".")
	}
	slices.Sort(folders)
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() || !licenceFile.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, folder, e.Name()))
			if err != nil {
				return err
			}
			m.texts = append(m.texts, text{filepath.ToSlash(filepath.Join(folder, e.Name())), string(b)})
			for _, id := range identify(string(b)) {
				if !slices.Contains(m.licences, id) {
					m.licences = append(m.licences, id)
				}
			}
		}
	}
	return nil
}

// fit says why a material must not ship, nil if it may.
func (m *material) fit() error {
	if len(m.licences) == 0 {
		return fmt.Errorf("%s %s: no licence that is known in %d files", m.name, m.version, len(m.texts))
	}
	for _, id := range m.licences {
		if !slices.Contains(shippable, id) {
			return fmt.Errorf("%s %s is under %s, which must not ship", m.name, m.version, id)
		}
	}
	return nil
}

// shippable are the licences that ask for no more than to be passed on.
var shippable = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0"}

// marks are sentences that only the text of that licence has. A file may hold
// several. GPL and the like are known in order to be refused by name.
var marks = []struct{ id, mark, without string }{
	{"Apache-2.0", "apache license version 2.0", ""},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy", ""},
	{"ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted", ""},
	{"ISC", "permission to use, copy, modify, and distribute this software for any purpose with or without fee is hereby granted", ""},
	{"BSD-3-Clause", "may be used to endorse or promote products derived from this software", ""},
	{"BSD-2-Clause", "redistributions in binary form must reproduce the above copyright notice", "endorse or promote products"},
	{"MPL-2.0", "mozilla public license version 2.0", ""},
	{"AGPL-3.0", "gnu affero general public license version 3", ""},
	{"LGPL", "gnu lesser general public license version", ""},
	{"GPL", "gnu general public license version", ""},
	{"SSPL", "server side public license", ""},
	{"BUSL-1.1", "business source license", ""},
}

var notText = regexp.MustCompile(`[^\p{L}\p{N}.,;:/]+`)

// identify returns the SPDX identifiers of the licences in a text.
func identify(s string) []string {
	s = strings.ToLower(notText.ReplaceAllString(s, " "))
	plain := strings.ReplaceAll(s, ",", "")
	var ids []string
	for _, m := range marks {
		if (strings.Contains(s, m.mark) || strings.Contains(plain, m.mark)) && (m.without == "" || !strings.Contains(s, m.without)) && !slices.Contains(ids, m.id) {
			ids = append(ids, m.id)
		}
	}
	return ids
}

// uplot is the one thing that ships and is no Go module.
func uplot(root string) (*material, error) {
	assets := filepath.Join(root, "report", "html", "assets")
	js, err := os.ReadFile(filepath.Join(assets, "uplot.js"))
	if err != nil {
		return nil, err
	}
	version := regexp.MustCompile(`v([0-9]+\.[0-9]+\.[0-9]+)`).FindSubmatch(js[:min(len(js), 400)])
	if version == nil {
		return nil, fmt.Errorf("uplot.js does not begin with its version")
	}
	licence, err := os.ReadFile(filepath.Join(assets, "uplot.LICENSE"))
	if err != nil {
		return nil, err
	}
	return &material{name: "uPlot", version: string(version[1]), purl: "pkg:npm/uplot@" + string(version[1]), licences: identify(string(licence)), texts: []text{{"LICENSE", string(licence)}}}, nil
}

// thirdParty is the file of all licences.
func thirdParty(list []*material) string {
	var b strings.Builder
	b.WriteString("Reprise holds work of others, under the licences that follow.\n\n")
	for _, m := range list {
		fmt.Fprintf(&b, "  %s %s: %s\n", m.name, m.version, strings.Join(m.licences, ", "))
	}
	for _, m := range list {
		for _, t := range m.texts {
			fmt.Fprintf(&b, "\n%s\n%s %s, %s\n%s\n\n%s\n", strings.Repeat("=", 80), m.name, m.version, t.file, strings.Repeat("=", 80), strings.TrimSpace(t.text))
		}
	}
	return b.String()
}

// bom lists the materials as CycloneDX.
func (r *release) bom(list []*material) *cdx.BOM {
	bom := cdx.NewBOM()
	bom.SerialNumber = "urn:uuid:" + stableUUID(r.stamp.version+r.stamp.revision)
	self := cdx.Component{
		BOMRef: "reprise", Type: cdx.ComponentTypeApplication, Name: "reprise", Version: r.stamp.version,
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "MIT"}}},
	}
	bom.Metadata = &cdx.Metadata{Timestamp: r.stamp.date.Format("2006-01-02T15:04:05Z"), Component: &self}
	if r.stamp.revision != "" {
		bom.Metadata.Properties = &[]cdx.Property{{Name: "vcs.revision", Value: r.stamp.revision}}
	}
	var components []cdx.Component
	var refs []string
	for _, m := range list {
		licences := cdx.Licenses{}
		for _, id := range m.licences {
			licences = append(licences, cdx.LicenseChoice{License: &cdx.License{ID: id}})
		}
		components = append(components, cdx.Component{
			BOMRef: m.purl, Type: cdx.ComponentTypeLibrary, Name: m.name, Version: m.version, PackageURL: m.purl, Licenses: &licences,
		})
		refs = append(refs, m.purl)
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: "reprise", Dependencies: &refs}}
	return bom
}

// stableUUID is a UUID made of a name, for what asks for one.
func stableUUID(name string) string {
	h := sha256.Sum256([]byte(name))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // version 8, made by a rule of one's own
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func (s *sbom) write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(s.bom)
}
