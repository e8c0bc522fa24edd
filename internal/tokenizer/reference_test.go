package tokenizer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/encoding/unicode"
)

var update = flag.Bool("update", false, "write golden.jsonl anew with the tokenizers package")

var shapes = []string{"llama3", "qwen2", "gpt2"}

func load(t testing.TB, shape string) *Tokenizer {
	t.Helper()
	tok, err := Load(filepath.Join("testdata", shape+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// cacheDir is where engines and tools for tests are installed.
func cacheDir(t *testing.T) string {
	if dir := os.Getenv("REPRISE_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache folder: set REPRISE_CACHE")
	}
	return filepath.Join(dir, "reprise")
}

type answer struct {
	Version         string
	Plain, Template [][]uint32
	Splits          [][]int
	Decoded         []string
}

// reference asks the Python package.
func reference(t *testing.T, file string, texts []string, ids [][]uint32) answer {
	t.Helper()
	python := filepath.Join(cacheDir(t), "tools", "bin", "python")
	if exec.Command(python, "-c", "import tokenizers").Run() != nil {
		t.Skipf("%s with the tokenizers package is not there: golden.jsonl is what is checked", python)
	}
	file, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	q, err := json.Marshal(map[string]any{"file": file, "texts": texts, "ids": ids})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, filepath.Join("testdata", "reference.py"))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(q), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// The ids are the package's on thousands of hostile strings, for each shape
// and for a tokenizer that was trained elsewhere.
func TestReference(t *testing.T) {
	files := []string{}
	for _, s := range shapes {
		files = append(files, filepath.Join("testdata", s+".json"))
	}
	if tiny := filepath.Join(cacheDir(t), "tiny", "llama", "tokenizer.json"); exists(tiny) {
		files = append(files, tiny)
	}
	for i, file := range files {
		t.Run(filepath.Base(filepath.Dir(file))+"/"+filepath.Base(file), func(t *testing.T) {
			tok, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			h := newHostile(uint64(i))
			n := 6500
			if testing.Short() {
				n = 500
			}
			texts := h.texts(n)
			ids := make([][]uint32, 500)
			for i := range ids {
				ids[i] = make([]uint32, h.IntN(20))
				for j := range ids[i] {
					ids[i][j] = h.Uint32N(uint32(tok.VocabSize() + 3))
				}
			}
			want := reference(t, file, texts, ids)
			bad := 0
			for i, text := range texts {
				got := tok.Encode(nil, text, Options{})
				if !slices.Equal(got, want.Plain[i]) {
					if bad++; bad <= 5 {
						t.Errorf("Encode(%q)\n got %d\nwant %d", text, got, want.Plain[i])
					}
				}
				if n := tok.Count(text); n != len(want.Plain[i]) {
					t.Errorf("Count(%q) = %d, want %d", text, n, len(want.Plain[i]))
				}
			}
			for i := range want.Template {
				if got := tok.Encode(nil, texts[i], Options{Template: true}); !slices.Equal(got, want.Template[i]) {
					t.Errorf("Encode(%q) with template\n got %d\nwant %d", texts[i], got, want.Template[i])
				}
			}
			for i := range want.Splits {
				if got := splits(tok, texts[i]); !slices.Equal(got, want.Splits[i]) {
					t.Errorf("%q is split at %d, want %d", texts[i], got, want.Splits[i])
				}
			}
			lossy := unicode.UTF8.NewDecoder()
			for i := range ids {
				got, err := lossy.String(tok.Decode(ids[i]))
				if err != nil || got != want.Decoded[i] {
					t.Errorf("Decode(%d) = %q, want %q (%v)", ids[i], got, want.Decoded[i], err)
				}
			}
			t.Logf("%d of %d texts exact against tokenizers %s", len(texts)-bad, len(texts), want.Version)
		})
	}
}

// splits returns where each piece of the split pattern ends, in characters.
func splits(tok *Tokenizer, text string) []int {
	text = string([]rune(text))
	var ends []int
	for i := 0; i < len(text); {
		i = tok.split(text, i)
		ends = append(ends, utf8.RuneCountInString(text[:i]))
	}
	return ends
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// goldenRow is a text and what the package made of it under each shape.
type goldenRow struct {
	Text                string
	Llama3, Qwen2, GPT2 []uint32
}

// The same without Python, on what the package said when the file was written.
func TestGolden(t *testing.T) {
	name := filepath.Join("testdata", "golden.jsonl")
	if *update {
		writeGolden(t, name)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	toks := map[string]*Tokenizer{}
	for _, s := range shapes {
		toks[s] = load(t, s)
	}
	n := 0
	for sc := bufio.NewScanner(f); sc.Scan(); n++ {
		var r goldenRow
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		for shape, want := range map[string][]uint32{"llama3": r.Llama3, "qwen2": r.Qwen2, "gpt2": r.GPT2} {
			if got := toks[shape].Encode(nil, r.Text, Options{}); !slices.Equal(got, want) {
				t.Errorf("%s: Encode(%q)\n got %d\nwant %d", shape, r.Text, got, want)
			}
		}
	}
	if n < 400 {
		t.Errorf("%d rows, want at least 400", n)
	}
}

func writeGolden(t *testing.T, name string) {
	var texts []string
	for _, s := range newHostile(99).texts(720) {
		if len(s) < 120 {
			texts = append(texts, string([]rune(s)))
		}
	}
	rows := make([]goldenRow, len(texts))
	for _, shape := range shapes {
		a := reference(t, filepath.Join("testdata", shape+".json"), texts, [][]uint32{})
		for i := range rows {
			rows[i].Text = texts[i]
			switch shape {
			case "llama3":
				rows[i].Llama3 = a.Plain[i]
			case "qwen2":
				rows[i].Qwen2 = a.Plain[i]
			case "gpt2":
				rows[i].GPT2 = a.Plain[i]
			}
		}
	}
	var out bytes.Buffer
	for _, r := range rows {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(line, '\n'))
	}
	if err := os.WriteFile(name, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
