package main

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// A target is a platform that binaries are built for.
type target struct {
	os, arch string
	nvml     bool // replay has NVML in it, and with it the C library
}

func (t target) String() string {
	s := t.os + "_" + t.arch
	if t.nvml {
		s += "_nvml"
	}
	return s
}

// targets are all platforms, or those that -only and -quick leave of them.
func (r *release) targets() []target {
	var list []target
	for _, t := range []target{
		{"linux", "amd64", false}, {"linux", "arm64", false}, {"darwin", "amd64", false}, {"darwin", "arm64", false},
		{"linux", "amd64", true}, {"linux", "arm64", true},
	} {
		switch {
		case r.quick && t != target{runtime.GOOS, runtime.GOARCH, false}:
		case r.only != "" && !slices.Contains(strings.Split(r.only, ","), t.String()):
		default:
			list = append(list, t)
		}
	}
	return list
}

// The programs, and those that have NVML in them if it is built in.
var (
	programs     = []string{"capture", "replay", "report", "synth", "trace"}
	nvmlPrograms = []string{"replay"}
)

// buildAll builds each target into a folder of its own, and checks that what it
// got is what it promises.
func (r *release) buildAll() error {
	cmds, err := os.ReadDir(filepath.Join(r.root, "cmd"))
	if err != nil {
		return err
	}
	var found []string
	for _, c := range cmds {
		found = append(found, c.Name())
	}
	if !slices.Equal(found, programs) {
		return fmt.Errorf("cmd holds %v, but a release is of %v: programs in build.go wants changing", found, programs)
	}
	if len(r.targets()) == 0 {
		return fmt.Errorf("no platform of -only %s is one that is built", r.only)
	}
	for _, t := range r.targets() {
		static := target{t.os, t.arch, false}
		if t.nvml && r.bins[static] == "" {
			return fmt.Errorf("%s takes its other programs from %s: name that too", t, static)
		}
		dir := filepath.Join(r.work, t.String())
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		say("building %s", t)
		if err := r.build(t, dir); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		if err := checkBinaries(t, dir); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		if err := r.start(t, dir); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		r.bins[t] = dir
	}
	return nil
}

// start starts the programs that this machine can, most likely one without a
// driver of GPUs, and checks what they say they are.
func (r *release) start(t target, dir string) error {
	if t.os != runtime.GOOS || t.arch != runtime.GOARCH {
		return nil
	}
	for _, p := range programs {
		out, err := exec.Command(filepath.Join(dir, p), "--version").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s --version: %w\n%s", p, err, out)
		}
		want := " static"
		if slices.Contains(nvmlPrograms, p) {
			want = map[bool]string{true: " cgo nvml", false: " static no-nvml"}[t.nvml]
		}
		if line := strings.TrimSpace(string(out)); !strings.HasPrefix(line, p+" "+r.stamp.version+" ") || !strings.HasSuffix(line, want) {
			return fmt.Errorf("%s says it is %q", p, line)
		}
	}
	return nil
}

func (r *release) build(t target, dir string) error {
	names := programs
	// No settings of the machine's: a release is the same wherever it is built.
	env := append(os.Environ(), "GOOS="+t.os, "GOARCH="+t.arch, "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOWORK=off",
		"CGO_CFLAGS=-O2 -g0", "CGO_CPPFLAGS=", "CGO_LDFLAGS=")
	link := fmt.Sprintf("-s -w -buildid= -X reprise/internal/build.version=%s -X reprise/internal/build.revision=%s -X reprise/internal/build.date=%s",
		r.stamp.version, r.stamp.revision, r.stamp.date.Format("2006-01-02T15:04:05Z"))
	args := []string{"build", "-trimpath", "-buildvcs=false", "-o", dir + "/"}
	if t.nvml {
		names = nvmlPrograms
		zig, err := zigEnv(r.root, r.work, t)
		if err != nil {
			return err
		}
		env = append(append(env, "CGO_ENABLED=1"), zig...)
		// The resolver and the user database of the static build, in Go: with
		// the same answers, and without the C library's plugins.
		args = append(args, "-tags", "netgo,osusergo")
		link += " -extldflags '-Wl,-z,lazy'"
	} else {
		env = append(env, "CGO_ENABLED=0")
	}
	if r.goCache != "" {
		env = append(env, "GOCACHE="+r.goCache)
	}
	args = append(args, "-ldflags", link)
	for _, n := range names {
		args = append(args, "./cmd/"+n)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = r.root, env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	if t.nvml { // the others are those of the static build
		for _, n := range programs {
			if slices.Contains(names, n) {
				continue
			}
			if err := os.Link(filepath.Join(r.bins[target{t.os, t.arch, false}], n), filepath.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkBinaries reads Linux binaries as the loader does.
func checkBinaries(t target, dir string) error {
	if t.os != "linux" {
		return nil
	}
	for _, n := range programs {
		check := checkStatic
		if t.nvml && slices.Contains(nvmlPrograms, n) {
			check = checkNVML
		}
		f, err := elf.Open(filepath.Join(dir, n))
		if err != nil {
			return err
		}
		err = check(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// checkStatic: nothing is loaded but the file itself.
func checkStatic(f *elf.File) error {
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return fmt.Errorf("is linked dynamically")
		}
	}
	return nil
}

// maxGlibc is that of RHEL 8; Debian 10, Ubuntu 18.10 and later have it too.
var maxGlibc = [2]int{2, 28}

// checkNVML: the C library alone is needed, in no version that is too new, and
// the symbols of NVML are bound when they are called and not when the program
// starts, which would fail where there is no driver.
func checkNVML(f *elf.File) error {
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, l := range libs {
		switch l {
		case "libc.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1": // glibc's own
		default:
			return fmt.Errorf("needs %s", l)
		}
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return err
	}
	nvml := 0
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF {
			continue
		}
		if strings.HasPrefix(s.Name, "nvml") {
			nvml++
			if elf.ST_BIND(s.Info) != elf.STB_WEAK {
				return fmt.Errorf("%s is not a weak symbol", s.Name)
			}
		}
		if v, ok := strings.CutPrefix(s.Version, "GLIBC_"); ok && newer(v, maxGlibc) {
			return fmt.Errorf("%s needs glibc %s", s.Name, v)
		}
	}
	if nvml == 0 {
		return fmt.Errorf("imports nothing of NVML")
	}
	for tag, bit := range map[elf.DynTag]uint64{elf.DT_FLAGS: uint64(elf.DF_BIND_NOW), elf.DT_FLAGS_1: uint64(elf.DF_1_NOW)} {
		values, err := f.DynValue(tag)
		if err != nil {
			return err
		}
		for _, v := range values {
			if v&bit != 0 {
				return fmt.Errorf("binds all symbols at the start (%v)", tag)
			}
		}
	}
	if now, err := f.DynValue(elf.DT_BIND_NOW); err != nil || len(now) > 0 {
		return fmt.Errorf("binds all symbols at the start (DT_BIND_NOW)")
	}
	return nil
}

// newer reports whether a version such as 2.2.5 is newer than max.
func newer(v string, max [2]int) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(v, "%d.%d", &major, &minor); n != 2 {
		return true // GLIBC_PRIVATE
	}
	return major > max[0] || major == max[0] && minor > max[1]
}

// generate has this machine's own build write its manual and completions.
func (r *release) generate() error {
	r.share = filepath.Join(r.work, "share")
	host := r.bins[target{runtime.GOOS, runtime.GOARCH, false}]
	if host == "" {
		return fmt.Errorf("no binaries for %s/%s among the targets, so none can be asked: release on Linux or macOS, amd64 or arm64", runtime.GOOS, runtime.GOARCH)
	}
	for _, p := range programs {
		for what, file := range map[string]string{"man": "man/" + p + ".1", "bash": "completions/bash/" + p, "zsh": "completions/zsh/_" + p, "fish": "completions/fish/" + p + ".fish"} {
			out, err := exec.Command(filepath.Join(host, p), "--generate", what).Output()
			if err != nil {
				return fmt.Errorf("%s --generate %s: %w", p, what, err)
			}
			file = filepath.Join(r.share, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(file, out, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
