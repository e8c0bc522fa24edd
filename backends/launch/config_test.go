package launch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const example = `
backend: vllm
url: http://127.0.0.1:{port}
vars: {port: 8000, model: a-model}
no_flags: true
command: [vllm, serve, "{model}", --port, "{port}"]
flags: {max-model-len: 8192, enable-prefix-caching: true, compilation-config: '{"level": 3}'}
env: {VLLM_MODEL: "{model}"}
ready_timeout: 90s
aliases:
  kv=small: {num-gpu-blocks-override: 64, block-size: 16}
  kv=large: {}
  seqs: max-num-seqs
kv_cache_tokens: {flag: num-gpu-blocks-override, unit: block-size, default: 16}
refuse: {page-size: "it is called block-size"}
`

func TestSpec(t *testing.T) {
	c, err := ParseConfig([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := c.Resolve([]Flag{{"seqs", "16"}, {"kv", "small"}, {"enable-prefix-caching", "false"}, {"max-model-len", ""}, {"block-size", "32"}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Spec(flags, map[string]string{"port": "8001"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"vllm", "serve", "a-model", "--port", "8001", "--no-enable-prefix-caching", "--compilation-config", `{"level": 3}`,
		"--max-num-seqs", "16", "--num-gpu-blocks-override", "64", "--block-size", "32"}
	if !slices.Equal(s.Command, want) {
		t.Errorf("command %q\nwant    %q", s.Command, want)
	}
	if s.URL != "http://127.0.0.1:8001" || s.Env["VLLM_MODEL"] != "a-model" || s.ReadyTimeout != 90*time.Second || s.StopTimeout != DefaultStopTimeout || s.Ready[0] != "/health" {
		t.Errorf("%+v", s)
	}
	same := *s
	if !s.Same(&same) {
		t.Error("a spec is not the same as itself")
	}
	if same.Env = map[string]string{"VLLM_MODEL": "another"}; s.Same(&same) {
		t.Error("another environment is the same")
	}
	for size, want := range map[string]string{"": "1024", "32": "512"} {
		given := []Flag{{"kv-cache-tokens", "16384"}}
		if size != "" {
			given = append(given, Flag{"block-size", size})
		}
		if flags, err := c.Resolve(given); err != nil || !slices.Contains(flags, Flag{"num-gpu-blocks-override", want}) {
			t.Errorf("16384 tokens in blocks of %q: %v, %v", size, flags, err)
		}
	}
	if s, err := c.Spec([]Flag{{"model", "another"}}, nil); err != nil || s.Command[2] != "another" || len(s.Command) != 5 {
		t.Errorf("a flag called as a var: %v, %v", s, err)
	}
	for _, f := range []Flag{{"kv", "huge"}, {"page-size", "1"}, {"kv-cache-tokens", "8"}, {"kv-cache-tokens", "much"}} {
		if _, err := c.Resolve([]Flag{f}); err == nil {
			t.Errorf("%s was taken", f)
		}
	}
	if _, err := c.Spec(nil, map[string]string{"gpu": "h100"}); err == nil {
		t.Error("an unknown var was taken")
	}
}

// A line for the shell gets the flags as words.
func TestShellLine(t *testing.T) {
	c, err := ParseConfig([]byte("backend: vllm\nurl: http://h:1\ncommand: exec vllm serve m {flags} 2>&1\nflags: {a: it's, b: true, c: false}\nstop: ssh h pkill -f vllm"))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := c.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Spec(flags, nil)
	if want := `exec vllm serve m '--a' 'it'\''s' '--b' 2>&1`; err != nil || !slices.Equal(s.Command, []string{"sh", "-c", want}) || s.Stop[2] != "ssh h pkill -f vllm" {
		t.Errorf("%q, %v", s, err)
	}
}

func TestBadConfigs(t *testing.T) {
	for name, tt := range map[string][2]string{
		"unknown key":  {"backend: vllm\nurl: http://h:1\ncomand: [vllm]", "[3:1] unknown field \"comand\""},
		"no backend":   {"url: http://h:1", "backend is missing"},
		"no url":       {"backend: vllm\ncommand: [vllm]", "url is missing"},
		"a list":       {"backend: vllm\nurl: http://h:1\ncommand: [vllm]\nflags: {a: [1]}", "flag a: want a number"},
		"dashes":       {"backend: vllm\nurl: http://h:1\ncommand: [vllm]\nflags: {--a: 1}", "without dashes"},
		"no such time": {"backend: vllm\nready_timeout: 5 minutes", "not a time"},
		"not YAML":     {"backend: [", ""},
		"a bomb":       {"backend: vllm\nflags:\n" + bomb(7), "with its aliases written out"},
	} {
		if _, err := ParseConfig([]byte(tt[0])); err == nil || !strings.Contains(err.Error(), tt[1]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// bomb is so many levels of ten aliases each of the level before.
func bomb(levels int) string {
	var b strings.Builder
	b.WriteString("  l0: &l0 x\n")
	for n := range levels {
		fmt.Fprintf(&b, "  l%d: &l%d [%s]\n", n+1, n+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d, ", n), 10), ", "))
	}
	return b.String()
}

// TestAliases reads a file that uses them as they are meant.
func TestAliases(t *testing.T) {
	c, err := ParseConfig([]byte("backend: vllm\nurl: &u http://h:1\ncommand: [vllm, *u]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Command.List; len(got) != 2 || got[1] != "http://h:1" {
		t.Errorf("the command is %q", got)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("backend: sim\naliases: {a: b}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		flags, err := c.Resolve(nil)
		if err != nil {
			return
		}
		if s, err := c.Spec(flags, nil); err == nil && c.Launches() && len(s.Command) == 0 {
			t.Fatal("a command without words")
		}
	})
}
