package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// TestMain makes the test binary the program that testApp is, for shells to
// complete.
func TestMain(m *testing.M) {
	if os.Getenv("REPRISE_CLI_TEST_APP") != "" {
		os.Exit(Main(testApp(), os.Args, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestComplete(t *testing.T) {
	tests := []struct {
		words string // split at single spaces: a trailing one begins a new word
		want  string // candidates, and :files
	}{
		{"", "search experiment fail help :files"},
		{"se", "search :files"},
		{"--ba", "--backend"},
		{"--speedup 2 --ba", "--backend"},
		{"trace.parquet --o", "--output"},
		{"trace.parquet se", ":files"}, // no subcommand after a positional
		{"-", "--backend --speedup --output -o --json --start --limit -n --verbose --help --version"},
		{"search --verb", ""}, // a flag of the program that search does not have
		{"search --j", "--json"},
		{"search ", ":files"},
		{"experiment ", "plan"}, // takes nothing but a command
		{"experiment --qu", "--quiet"},
		{"experiment plan --qu", "--quiet"}, // found from below
		{"help ex", "experiment"},
		{"help experiment ", "plan"},
		{"--mode ", "warm cold salt"},
		{"--mode c", "cold"},
		{"--mode=c", "--mode=cold"},
		{"search --output ", ":files"},
		{"--output=x", ":files"},
		{"--nothing=x", ""},
		{"-- --js", ":files"},
		{"-5 se", ":files"}, // a number is an argument
	}
	for _, tt := range tests {
		app := testApp()
		if tt.words != "-" {
			app.Flags = append(app.Flags, &cli.StringFlag{Name: "mode", Usage: "caches are `warm|cold|salt`"})
		}
		list, files := complete(app, strings.Split(tt.words, " "))
		var got []string
		for _, c := range list {
			got = append(got, c.word)
		}
		if files {
			got = append(got, ":files")
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("complete(%q) = %q, want %q", tt.words, s, tt.want)
		}
	}
}

func TestManPage(t *testing.T) {
	var b bytes.Buffer
	if code := Main(testApp(), []string{"replay", "--generate", "man"}, &b, &b); code != 0 {
		t.Fatalf("--generate man = %d %s", code, b.String())
	}
	golden := filepath.Join("testdata", "man.1")
	got := strings.ReplaceAll(b.String(), "Reprise "+Version(), "Reprise VERSION")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("man page (-want +got):\n%s", d)
	}
}

func TestGenerateUsage(t *testing.T) {
	for _, what := range []string{"", "perl"} {
		var out, diag bytes.Buffer
		if code := Main(testApp(), []string{"replay", "--generate", what}, &out, &diag); code != Usage || !strings.Contains(diag.String(), "want man, bash, zsh or fish") {
			t.Errorf("--generate %q = %d %q", what, code, diag.String())
		}
	}
}

// program installs the test program as "replay" with the completion of a shell,
// and returns the folder of both.
func program(t *testing.T, shell string) string {
	t.Helper()
	if _, err := exec.LookPath(shell); err != nil {
		t.Skipf("no %s here", shell)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var script bytes.Buffer
	if code := Main(testApp(), []string{"replay", "--generate", shell}, &script, os.Stderr); code != 0 {
		t.Fatalf("--generate %s = %d", shell, code)
	}
	wrapper := fmt.Sprintf("#!/bin/sh\nREPRISE_CLI_TEST_APP=1 exec '%s' \"$@\"\n", self)
	for name, text := range map[string]string{"replay": wrapper, "_replay": script.String(), "trace.parquet": "", "a b.csv": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFish(t *testing.T) {
	dir := program(t, "fish")
	for line, want := range map[string]string{
		"replay --ba":             "--backend",
		"replay tr":               "trace.parquet",
		"replay experiment ":      "plan",
		"replay trace.parquet -o": "-o",
	} {
		cmd := exec.Command("fish", "--no-config", "-c", "source _replay; complete -C '"+line+"'")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
		out, err := cmd.CombinedOutput()
		if first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\t"); err != nil || first != want {
			t.Errorf("fish completes %q to %q (%v), want %q first", line, out, err, want)
		}
	}
}
