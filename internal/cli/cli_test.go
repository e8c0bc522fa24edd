package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// testApp has the shape of replay: files as well as subcommands, some flags
// declared twice. What ran is written as one line.
func testApp() *cli.App {
	show := func(c *cli.Context) error {
		fmt.Fprintf(c.App.Writer, "%s args=%q backend=%q speedup=%g output=%q json=%t start=%s limit=%d verbose=%t\n",
			c.Command.HelpName, c.Args().Slice(), c.StringSlice("backend"), c.Float64("speedup"), c.String("output"),
			c.Bool("json"), c.Duration("start"), c.Int("limit"), c.Bool("verbose"))
		return nil
	}
	flags := func() []cli.Flag {
		return []cli.Flag{
			&cli.StringSliceFlag{Name: "backend", Usage: "play against `NAME[=URL]`"},
			&cli.Float64Flag{Name: "speedup", Value: 1, Usage: "play `N` times as fast"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `DIR`"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			&cli.DurationFlag{Name: "start", Usage: "begin at `D`"},
			&cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Usage: "stop after `N` requests"},
		}
	}
	return &cli.App{
		Name: "replay", Usage: "play a trace",
		UsageText:   "replay TRACE [flags]\nreplay COMMAND [flags]",
		Description: "Replay plays.\n\nExamples:\n  replay x.parquet",
		Flags:       append(flags(), &cli.BoolFlag{Name: "verbose", Usage: "say more"}),
		Action:      show,
		Commands: []*cli.Command{
			{Name: "search", Usage: "find the limit", Flags: flags(), Action: show},
			{Name: "experiment", Usage: "many runs", Flags: []cli.Flag{&cli.BoolFlag{Name: "quiet", Usage: "say less"}}, Subcommands: []*cli.Command{
				{Name: "plan", Usage: "list the runs", Flags: flags(), Action: show},
			}},
			{Name: "fail", Action: func(c *cli.Context) error {
				switch c.Args().First() {
				case "plain":
					return errors.New("x.parquet: row 2: arrival goes backwards")
				case "wrapped":
					return fmt.Errorf("run 1: %w", &Error{Code: Invalid, Err: errors.New("fell behind"), Hint: "replay --speedup 1"})
				case "silent":
					return &Error{Code: Failed}
				case "interrupted":
					return fmt.Errorf("reading: %w", context.Canceled)
				}
				return errors.Join(errors.New("one"), errors.New("two"))
			}},
		},
	}
}

func TestCommandLines(t *testing.T) {
	const plain = `replay args=["trace.parquet"] backend=["vllm"] speedup=2 output="run/" json=false start=0s limit=0 verbose=false` + "\n"
	line := func(cmd, args, backend, rest string) string {
		return fmt.Sprintf("%s args=[%s] backend=[%s] %s\n", cmd, args, backend, rest)
	}
	const none = `speedup=1 output="" json=false start=0s limit=0 verbose=false`
	tests := []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		// The shapes of the manual.
		{"trace.parquet --backend vllm --speedup 2 -o run/", 0, plain, ""},
		{"--backend vllm trace.parquet --speedup 2 -o run/", 0, plain, ""},
		{"--backend vllm --speedup 2 -o run/ trace.parquet", 0, plain, ""},
		{"-backend=vllm --speedup=2 --o=run/ -- trace.parquet", 0, plain, ""},
		{"trace.parquet --backend vllm=http://a:1/?x=1,2 --backend sglang", 0, line("replay", `"trace.parquet"`, `"vllm=http://a:1/?x=1,2" "sglang"`, none), ""},
		{"a --json b", 0, line("replay", `"a" "b"`, "", `speedup=1 output="" json=true start=0s limit=0 verbose=false`), ""},
		{"a --json=false b", 0, line("replay", `"a" "b"`, "", none), ""},
		{"a --speedup 2 --speedup 3", 0, line("replay", `"a"`, "", `speedup=3 output="" json=false start=0s limit=0 verbose=false`), ""},
		{"a -o x --output y", 0, line("replay", `"a"`, "", `speedup=1 output="y" json=false start=0s limit=0 verbose=false`), ""},
		// What looks like a flag and is none.
		{"-", 0, line("replay", `"-"`, "", none), ""},
		{"- -o -", 0, line("replay", `"-"`, "", `speedup=1 output="-" json=false start=0s limit=0 verbose=false`), ""},
		{"-5 a", 0, line("replay", `"-5" "a"`, "", none), ""},
		{"a --limit -5", 0, line("replay", `"a"`, "", `speedup=1 output="" json=false start=0s limit=-5 verbose=false`), ""},
		{"a --start -5s", 0, line("replay", `"a"`, "", `speedup=1 output="" json=false start=-5s limit=0 verbose=false`), ""},
		{"a -- --json", 0, line("replay", `"a" "--json"`, "", none), ""},
		{"a -o=--json", 0, line("replay", `"a"`, "", `speedup=1 output="--json" json=false start=0s limit=0 verbose=false`), ""},
		// Subcommands, and files named like them.
		{"search a --json", 0, line("replay search", `"a"`, "", `speedup=1 output="" json=true start=0s limit=0 verbose=false`), ""},
		{"--backend vllm search a", 0, line("replay search", `"a"`, `"vllm"`, none), ""},
		{"search a --verbose", 2, "", "replay: unknown flag --verbose\nhint: replay search --help\n"},
		{"--verbose search a", 2, "", "replay: --verbose is not a flag of replay search\nhint: replay search --help\n"},
		{"experiment plan a --quiet", 0, line("replay experiment plan", `"a"`, "", none), ""},
		{"experiment --quiet plan a", 0, line("replay experiment plan", `"a"`, "", none), ""},
		{"./search", 0, line("replay", `"./search"`, "", none), ""},
		{"-- search", 0, line("replay", `"./search"`, "", none), ""},
		{"a search", 0, line("replay", `"a" "search"`, "", none), ""},
		{"search search", 0, line("replay search", `"search"`, "", none), ""},
		{"experiment plan m.yaml -n 3", 0, line("replay experiment plan", `"m.yaml"`, "", `speedup=1 output="" json=false start=0s limit=3 verbose=false`), ""},
		// Usage errors.
		{"a --speedupp 2", 2, "", "replay: unknown flag --speedupp\nhint: did you mean --speedup?\n"},
		{"search a --back x", 2, "", "replay: unknown flag --back\nhint: did you mean --backend?\n"},
		{"search a --zzzzzz=1", 2, "", "replay: unknown flag --zzzzzz\nhint: replay search --help\n"},
		{"a --output", 2, "", "replay: --output needs a value\nhint: replay --help\n"},
		{"a -o --json", 2, "", "replay: --output needs a value\nhint: replay --help\n"},
		{"a --speedup fast", 2, "", "replay: --speedup \"fast\": want a number\n"},
		{"a --limit 1.5", 2, "", "replay: --limit \"1.5\": want a whole number\n"},
		{"search a --start 10", 2, "", "replay: --start \"10\": want a duration such as 500ms, 10s or 1h30m\n"},
		{"a --json=maybe", 2, "", "replay: --json \"maybe\": want true or false\n"},
		{"serach a", 2, "", "replay: no file and no command \"serach\"\nhint: did you mean search? a file of that name is written ./serach\n"},
		{"experiment", 2, "", "replay: no command, want one of plan\nhint: replay experiment --help\n"},
		{"experiment plam", 2, "", "replay: unknown command \"plam\"\nhint: did you mean plan?\n"},
		{"experiment zzz", 2, "", "replay: unknown command \"zzz\"\nhint: the commands are plan\n"},
		// Errors of the program itself.
		{"fail plain", 1, "", "replay: x.parquet: row 2: arrival goes backwards\n"},
		{"fail wrapped", 3, "", "replay: run 1: fell behind\nhint: replay --speedup 1\n"},
		{"fail silent", 1, "", ""},
		{"fail interrupted", 130, "", "replay: interrupted\n"},
		{"fail", 1, "", "replay: one\nreplay: two\n"},
	}
	for _, tt := range tests {
		var stdout, stderr bytes.Buffer
		code := Main(testApp(), append([]string{"replay"}, strings.Fields(tt.args)...), &stdout, &stderr)
		if code != tt.code || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
			t.Errorf("replay %s:\n got %d %q %q\nwant %d %q %q", tt.args, code, stdout.String(), stderr.String(), tt.code, tt.stdout, tt.stderr)
		}
	}
}

// A file that is there is a file, however much its name looks like a command.
func TestFileLikeCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("serach", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if code := Main(testApp(), []string{"replay", "serach"}, &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), `args=["serach"]`) {
		t.Errorf("replay serach = %d, %q %q", code, stdout.String(), stderr.String())
	}
}

var update = flag.Bool("update", false, "rewrite testdata")

func TestHelp(t *testing.T) {
	for _, tt := range []struct{ file, args string }{
		{"root", "--help"},
		{"root", "help"},
		{"search", "search --help"},
		{"search", "help search"},
		{"search", "search a -h --json"},
		{"experiment", "experiment --help"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(testApp(), append([]string{"replay"}, strings.Fields(tt.args)...), &stdout, &stderr)
		if code != 0 || stderr.Len() > 0 {
			t.Errorf("replay %s = %d, stderr %q", tt.args, code, stderr.String())
		}
		name := filepath.Join("testdata", "help-"+tt.file+".txt")
		if *update {
			if err := os.WriteFile(name, stdout.Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), stdout.String()); d != "" {
			t.Errorf("replay %s (-want +got):\n%s", tt.args, d)
		}
	}
}

func TestVersion(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := Main(testApp(), []string{"replay", "--version"}, &stdout, &stderr)
	if want := "replay " + Version() + " go1."; code != 0 || !strings.HasPrefix(stdout.String(), want) {
		t.Errorf("replay --version = %d %q, want %q...", code, stdout.String(), want)
	}
}

// FuzzParse checks that no command line panics, and that every one either runs
// or says why not and exits 2 (1 for the command that fails on purpose).
func FuzzParse(f *testing.F) {
	for _, s := range []string{"trace.parquet --backend vllm -o run/", "-- -- -", "-", "--", "--=", "-=x", "---", "search --start", "help help", "--o", "experiment plan plan", "-1e9 --limit -1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var stdout, stderr bytes.Buffer
		code := Main(testApp(), append([]string{"replay"}, strings.Fields(line)...), &stdout, &stderr)
		if code == 0 != (stderr.Len() == 0) && !strings.Contains(line, "fail") {
			t.Errorf("replay %q = %d with stderr %q", line, code, stderr.String())
		}
		if code != 0 && code != 2 && !strings.Contains(line, "fail") {
			t.Errorf("replay %q = %d", line, code)
		}
	})
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	err := WriteJSON(&b, struct {
		Z string         `json:"z"`
		A map[string]int `json:"a"`
		D time.Duration  `json:"d_ns"`
	}{"<b>", map[string]int{"y": 1, "x": 2}, time.Second})
	want := "{\n  \"z\": \"<b>\",\n  \"a\": {\n    \"x\": 2,\n    \"y\": 1\n  },\n  \"d_ns\": 1000000000\n}\n"
	if err != nil || b.String() != want {
		t.Errorf("WriteJSON = %q, %v; want %q", b.String(), err, want)
	}
}

func TestTable(t *testing.T) {
	tbl := Table{Head: []string{"name", "n", "note"}}
	tbl.Row("prompt", "1,024", "µs")
	tbl.Row("out", "-")
	var b bytes.Buffer
	if err := tbl.Write(&b, "  "); err != nil {
		t.Fatal(err)
	}
	want := "  name        n  note\n  prompt  1,024  µs\n  out         -\n"
	if b.String() != want {
		t.Errorf("Write = %q, want %q", b.String(), want)
	}
}

func TestIsTerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if IsTerminal(f) || IsTerminal(&bytes.Buffer{}) {
		t.Error("a file or a buffer is a terminal")
	}
	if got := Columns(f, 93); got != 93 {
		t.Errorf("Columns(file, 93) = %d", got)
	}
}
