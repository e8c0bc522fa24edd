package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// This program is the C compiler of the build with NVML as well: go build calls
// it as CC, with these in the environment.
const (
	zigTargetEnv = "REPRISE_RELEASE_ZIG_TARGET"
	zigPythonEnv = "REPRISE_RELEASE_ZIG_PYTHON"
	zigWeakEnv   = "REPRISE_RELEASE_ZIG_WEAK"
)

//go:embed zig-requirements.txt
var zigRequirements string

// compile runs zig cc with the arguments of a C compiler, for an old glibc.
//
// go-nvml leaves the symbols of NVML undefined, for dlopen to find, and says so
// to the linker with a flag that zig's does not have. So they are declared weak
// in place of that, which every linker lets be undefined; they are still bound
// lazily, through the table of procedures.
func compile(target string, args []string) int {
	link := true
	kept := []string{"-m", "ziglang", "cc", "-target", target}
	for _, a := range args {
		if strings.HasPrefix(a, "-Wl,--unresolved-symbols=") {
			continue
		}
		if a == "-c" || a == "-E" || a == "-S" {
			link = false
		}
		kept = append(kept, a)
	}
	if !link {
		// -w comes last: runtime/cgo makes warnings errors, and one is that no
		// other file declares what is weak.
		kept = append(kept, "-include", os.Getenv(zigWeakEnv), "-w")
	}
	cmd := exec.Command(os.Getenv(zigPythonEnv), kept...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "zig cc:", err)
		return 1
	}
	return 0
}

// zigEnv is the environment in which go build uses zig for t.
func zigEnv(root, work string, t target) ([]string, error) {
	python, err := zigPython()
	if err != nil {
		return nil, err
	}
	weak, err := weakNVML(root, work)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cpu := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[t.arch]
	return []string{
		"CC=" + self, zigPythonEnv + "=" + python, zigWeakEnv + "=" + weak,
		fmt.Sprintf("%s=%s-linux-gnu.%d.%d", zigTargetEnv, cpu, maxGlibc[0], maxGlibc[1]),
	}, nil
}

// zigPython is a Python that has zig. The first time, it is made in the user's
// cache from PyPI, pinned by the hashes in zig-requirements.txt.
func zigPython() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "reprise", "zig-"+zigVersion())
	python := filepath.Join(dir, "bin", "python")
	if exec.Command(python, "-m", "ziglang", "version").Run() == nil {
		return python, nil
	}
	say("installing zig %s into %s", zigVersion(), dir)
	requirements, err := os.CreateTemp("", "zig-*.txt")
	if err != nil {
		return "", err
	}
	defer os.Remove(requirements.Name())
	_, err = requirements.WriteString(zigRequirements)
	if err := errors.Join(err, requirements.Close()); err != nil {
		return "", err
	}
	for _, c := range [][]string{
		{"python3", "-m", "venv", "--clear", dir},
		{python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:", "-r", requirements.Name()},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, out)
		}
	}
	return python, nil
}

func zigVersion() string {
	return regexp.MustCompile(`==([0-9.]+)`).FindStringSubmatch(zigRequirements)[1]
}

var nvmlFunction = regexp.MustCompile(`\bnvml[A-Z][A-Za-z0-9_]*`)

// weakNVML writes a header that declares every function of NVML weak.
func weakNVML(root, work string) (string, error) {
	dir, err := moduleDir(root, "github.com/NVIDIA/go-nvml")
	if err != nil {
		return "", err
	}
	header, err := os.ReadFile(filepath.Join(dir, "pkg", "nvml", "nvml.h"))
	if err != nil {
		return "", err
	}
	var names []string
	for line := range bytes.Lines(header) {
		if bytes.Contains(line, []byte("DECLDIR")) {
			for _, n := range nvmlFunction.FindAll(line, -1) {
				names = append(names, string(n))
			}
		}
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) < 100 {
		return "", fmt.Errorf("%d functions in nvml.h: it is written otherwise than it was", len(names))
	}
	file := filepath.Join(work, "weak-nvml.h")
	return file, os.WriteFile(file, []byte("#pragma weak "+strings.Join(names, "\n#pragma weak ")+"\n"), 0o644)
}

// moduleDir is where the source of a dependency of the project is.
func moduleDir(root, path string) (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", path)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go list -m %s: %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}
