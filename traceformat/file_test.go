package traceformat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
)

// fullHeader holds a value in every field.
func fullHeader() *Header {
	return &Header{
		Version: Version,
		Start:   time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC),
		Clock:   Clock{Source: "log", Tick: 3 * time.Second, Dequantised: "uniform", Steps: []ClockStep{{At: 5, By: -3}}},
		Origin:  Origin{Program: "p", Version: "v1", Dialect: "mooncake", Vantage: "proxy"},

		Tokenizer: "llama",
		Blocks:    Blocks{Size: 512, Scheme: "sequence", Scope: ScopeGlobal, Partial: PartialKept},
		Lengths:   LengthsCumulative,
		Keys:      "ab12",
		Sampling:  Sampling{Rate: 0.25, By: "session"},
		Rows:      Counts{Seen: 7, Recorded: 2, Dropped: map[string]int64{"late": 5}},
		Sorted:    true,
		Partial:   PartialInterrupted,
		Extra:     map[string]string{"mine": "x=y", "reprise.later": "kept"},
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	for _, want := range []*Header{fullHeader(), {Version: Version, Sorted: true, Rows: Counts{Seen: 2, Recorded: 2}}} {
		writeTrace(t, path, want, mixed(1, 2), Overwrite())
		r, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if diff := cmp.Diff(want, r.Header()); diff != "" {
			t.Errorf("header changed (-written +read):\n%s", diff)
		}
	}
}

func TestHeaderIsChecked(t *testing.T) {
	for name, h := range map[string]*Header{
		"version":       {Version: 2},
		"sampling rate": {Sampling: Sampling{Rate: 1.5}},
		"extra key":     {Extra: map[string]string{"reprise.start": "x"}},
		"negative":      {Blocks: Blocks{Size: -1}},
	} {
		path := filepath.Join(t.TempDir(), "t.parquet")
		if w, err := Create(path, h); err == nil {
			w.Abort()
			t.Errorf("Create with a bad header (%s) gave no error", name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("Create with a bad header = %v, want it to name %q", err, name)
		}
	}
}

// The table is what FORMAT.md, the journal and the file follow from.
func TestColumnTable(t *testing.T) {
	last := uint64(0)
	for i, c := range columns {
		if c.tag <= last {
			t.Errorf("column %s: field number %d does not rise", c.name, c.tag)
		}
		last = c.tag
		if leaf, ok := schema.Lookup(strings.Split(c.name+map[bool]string{true: ".list.element"}[c.list()], ".")...); !ok || leaf.ColumnIndex != i {
			t.Errorf("column %s is leaf %d of the schema (%t), want %d", c.name, leaf.ColumnIndex, ok, i)
		}
		r := new(Row)
		if got := c.field.appendJSON(nil, r); len(got) > 0 && !c.required {
			t.Errorf("column %s of an empty row is %s, want nothing", c.name, got)
		}
		if got := c.field.appendJSON(nil, full()); len(got) == 0 {
			t.Errorf("column %s has no value in full()", c.name)
		}
	}
}

func TestColumnsProjection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	rows := mixed(3, 700)
	writeTrace(t, path, nil, rows)
	want := make([]Row, len(rows))
	for i, r := range rows {
		want[i] = Row{Request: Request{Arrival: r.Arrival, PrefixBlocks: r.PrefixBlocks}, Outcome: Outcome{Status: r.Status}}
	}
	got := readTrace(t, path, Columns("status", "arrival_ns", "prefix_blocks"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("projection (-want +got):\n%s", diff)
	}
	if _, err := OpenFile(path, Columns("arrival_ns", "arival")); err == nil || !strings.Contains(err.Error(), `"arival"`) {
		t.Errorf("OpenFile of a column that is not = %v, want an error that names it", err)
	}
}

func TestWithinSkipsRowGroups(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	w, err := Create(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxGroupRows {
		if err := w.Write(&Row{Request: Request{ID: int64(i), Arrival: time.Duration(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	rows := readTrace(t, path, Within(maxGroupRows+5, maxGroupRows+6))
	if len(rows) != maxGroupRows || rows[0].ID != maxGroupRows {
		t.Errorf("%d rows, from %d; want the second row group", len(rows), rows[0].ID)
	}
}

func TestWriterRefusesAndAborts(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "t.parquet")
	if err := os.WriteFile(path, []byte("precious"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, nil); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Create over a file = %v, want fs.ErrExist and the path", err)
	}
	if _, err := Create(dir, nil, Overwrite()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a folder = %v, want fs.ErrExist", err)
	}
	if _, err := Create(filepath.Join(dir, "no", "t"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Create in no folder = %v, want fs.ErrNotExist", err)
	}
	w, err := Create(path, nil, Overwrite())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(full()); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := w.Write(full()); err == nil {
		t.Error("Write after Abort gave no error")
	}
	if names := folder(t, dir); !slices.Equal(names, []string{"t.parquet"}) {
		t.Errorf("after Abort the folder holds %q", names)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("after Abort the file holds %q", b)
	}
	// What appears while the trace is written stays, too.
	other := filepath.Join(dir, "u.parquet")
	if w, err = Create(other, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte("precious"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Close over a file = %v, want fs.ErrExist", err)
	}
	if names := folder(t, dir); !slices.Equal(names, []string{"t.parquet", "u.parquet"}) {
		t.Errorf("after a refused Close the folder holds %q", names)
	}
}

// A disk that fails is reported, and no half of a trace takes the name.
func TestWriterFailingDisk(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "t.parquet")
	w, err := Create(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.file.Close()
	for range 3000 {
		w.Write(full())
	}
	if err := w.Close(); !errors.Is(err, fs.ErrClosed) || !strings.Contains(err.Error(), path) {
		t.Errorf("Close = %v, want the error of the disk and the path", err)
	}
	if names := folder(t, dir); len(names) != 0 {
		t.Errorf("folder holds %q", names)
	}
}

func TestWriterOrder(t *testing.T) {
	dir := t.TempDir()
	early, late := Row{Request: Request{ID: 1, Arrival: 1}}, Row{Request: Request{ID: 2, Arrival: 2}}
	path := filepath.Join(dir, "a")
	writeTrace(t, path, &Header{Sorted: true}, []Row{late, early})
	r, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if r.Header().Sorted {
		t.Error("a file out of order says that it is sorted")
	}
	if got := rowsOf(t, r); len(got) != 2 || got[0].ID != 2 {
		t.Errorf("rows of an unsorted file = %v", got)
	}
	w, err := Create(filepath.Join(dir, "b"), nil, RequireSorted())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.Write(&late); err != nil {
		t.Fatal(err)
	}
	err = w.Write(&early)
	if e, ok := errors.AsType[*RowError](err); !ok || !errors.Is(err, ErrUnsorted) || e.Row != 1 {
		t.Errorf("Write out of order = %v, want ErrUnsorted at row 1", err)
	}
}

func TestBadRowsAreRefused(t *testing.T) {
	for name, r := range map[string]Row{
		"arrival_ns":    {Request: Request{Arrival: -1}},
		"ten years":     {Request: Request{Arrival: time.Duration(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())}},
		"prompt_tokens": {Request: Request{PromptTokens: Some[int32](-5)}},
		"output_tokens": {Request: Request{OutputTokens: Some[int32](1<<30 + 1)}},
		"chunk_tokens":  {Outcome: Outcome{ChunkTimes: []time.Duration{1}, ChunkTokens: []int32{}}},
		"lap":           {Request: Request{Lap: -1}},
	} {
		w, err := Create(filepath.Join(t.TempDir(), "t"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(&Row{}); err != nil {
			t.Fatal(err)
		}
		err = w.Write(&r)
		if e, ok := errors.AsType[*RowError](err); !ok || e.Row != 1 || !strings.Contains(err.Error(), name) {
			t.Errorf("Write of a row with a bad %s = %v", name, err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("Close after a refused row = %v", err)
		}
	}
}

func TestTextBecomesUTF8(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	writeTrace(t, path, nil, []Row{{Request: Request{Model: "a\xffb"}}})
	if got := readTrace(t, path)[0].Model; got != "a\uFFFDb" {
		t.Errorf("model = %q", got)
	}
}

func TestRowJSON(t *testing.T) {
	b, err := json.Marshal(full())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(columns) {
		t.Errorf("%d keys, want %d", len(got), len(columns))
	}
	for key, want := range map[string]string{
		"prefix_blocks": `["0","1","9223372036854775813","18446744073709551615"]`,
		"output_blocks": `[]`,
		"extra":         `{"a":[1,"x"]}`,
		"prompt_digest": `"-1"`,
		"arrival_ns":    `1234567890123`,
		"stream":        `true`,
		"temperature":   `0.7`,
		"client_id":     `"client-ä"`,
	} {
		if string(got[key]) != want {
			t.Errorf("%s = %s, want %s", key, got[key], want)
		}
	}
	if s := string(new(Row).AppendJSON(nil)); s != `{"id":0,"lap":0,"arrival_ns":0}` {
		t.Errorf("an empty row is %s", s)
	}
}

// firstError returns the error that reading path to its end gives.
func firstError(path string, opts ...ReadOption) error {
	r, err := Open(path, opts...)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, err := range r.All() {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	writeTrace(t, good, nil, mixed(1, 500))
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	runDir := filepath.Join(dir, "run")
	if err := os.Mkdir(runDir, 0o777); err != nil {
		t.Fatal(err)
	}
	file("run/"+RunTrace+".journal", []byte(journalMagic))
	tests := []struct {
		name, path string
		want       error
		text       string
	}{
		{"empty", file("empty", nil), ErrEmpty, ""},
		{"empty gzip", file("empty.gz", packGzip(t, nil)), ErrEmpty, "unpacked"},
		{"folder", dir, ErrDirectory, ""},
		{"unfinished run", runDir, ErrJournal, "trace recover"},
		{"journal", filepath.Join(runDir, RunTrace+".journal"), ErrJournal, "trace recover"},
		{"absent", filepath.Join(dir, "absent"), fs.ErrNotExist, ""},
		{"cut", file("cut", b[:len(b)/2]), ErrTruncated, "trace recover"},
		{"cut to the magic", file("magic", b[:4]), ErrTruncated, ""},
		{"cut gzip", file("cut.gz", packGzip(t, b)[:2000]), ErrTruncated, "gzip"},
		{"unknown", file("unknown", []byte("hello, world\n")), ErrFormat, "known: "},
		{"not the named format", file("u2", []byte("hello")), ErrFormat, ""},
		{"scheme", "gopher://x", nil, "no scheme is called gopher"},
	}
	for _, tt := range tests {
		var opts []ReadOption
		if tt.name == "not the named format" {
			opts = append(opts, WithFormat(NativeFormat))
		}
		err := firstError(tt.path, opts...)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: Open = %v, want %v (%s)", tt.name, err, tt.want, tt.text)
			continue
		}
		if _, ok := errors.AsType[*RowError](err); !ok || !strings.Contains(err.Error(), tt.path) {
			t.Errorf("%s: error %q does not name %s", tt.name, err, tt.path)
		}
	}
	if err := firstError(good, WithFormat("nonesuch")); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("Open in no known format = %v", err)
	}
}

// Flipped bits never pass for data: pages carry checksums, and what has none is
// the footer, which then does not parse or does not fit.
func TestDamagedPagesAreNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	want := mixed(4, 400)
	writeTrace(t, path, nil, want)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pq, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	for i, g := range pq.Metadata().RowGroups[0].Columns {
		c := slices.Clone(b)
		at := g.MetaData.DataPageOffset + int64(g.MetaData.TotalCompressedSize) - 1
		if d := g.MetaData.DictionaryPageOffset; d != 0 {
			at = d + int64(g.MetaData.TotalCompressedSize) - 1
		}
		c[at] ^= 0x10
		if err := os.WriteFile(bad, c, 0o666); err != nil {
			t.Fatal(err)
		}
		err := firstError(bad)
		if e, ok := errors.AsType[*RowError](err); !ok || e.Row < 0 || !strings.Contains(err.Error(), columns[i].name) {
			t.Errorf("damage in column %s: %v", columns[i].name, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "t")
	writeTrace(f, path, fullHeader(), []Row{*full()})
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-9])
	f.Add(packGzip(f, []byte("a,b\n")))
	f.Add([]byte(journalMagic))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := Open("-", Stdin(bytes.NewReader(in)), TempDir(t.TempDir()))
		if err != nil {
			if _, ok := errors.AsType[*RowError](err); !ok {
				t.Fatalf("error %v is a %T, want *RowError", err, err)
			}
			return
		}
		defer r.Close()
		for row, err := range r.All() {
			if _, ok := errors.AsType[*RowError](err); err != nil && (!ok || row != nil) {
				t.Fatalf("error %v with row %v", err, row)
			}
		}
	})
}

func packGzip(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func packZstd(t testing.TB, b []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(b, nil)
}

// A native trace opens from anywhere, and leaves no temporary file behind.
func TestOpenNative(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, RunTrace)
	want := mixed(5, 300)
	writeTrace(t, path, nil, want)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	gz, zst := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for path, b := range map[string][]byte{gz: packGzip(t, b), zst: packZstd(t, b)} {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{path, dir, gz, zst, "-"} {
		r, err := Open(name, TempDir(temp), Stdin(bytes.NewReader(b)))
		if err != nil {
			t.Errorf("Open(%s) = %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, rowsOf(t, r)); diff != "" {
			t.Errorf("Open(%s): rows changed:\n%s", name, diff)
		}
	}
	if names := folder(t, temp); len(names) != 0 {
		t.Errorf("temporary files are left: %q", names)
	}
}

// lines is a foreign format of one arrival a line.
type lines struct {
	src    io.Reader
	name   string
	closed *bool
}

func (l lines) Header() *Header { return &Header{Version: Version} }
func (l lines) Close() error    { *l.closed = true; return nil }
func (l lines) All() iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		b, err := io.ReadAll(l.src)
		if err != nil {
			yield(nil, &RowError{Name: l.name, Row: -1, Err: err})
			return
		}
		for i, s := range strings.Fields(string(b))[1:] {
			var at int64
			if _, err := fmt.Sscan(s, &at); err != nil {
				yield(nil, &RowError{Name: l.name, Row: int64(i), Line: int64(i) + 2, Err: err})
				return
			}
			if !yield(&Row{Request: Request{ID: int64(i), Arrival: time.Duration(at)}}, nil) {
				return
			}
		}
	}
}

func TestRegisteredFormatsAndSchemes(t *testing.T) {
	var closed bool
	open := func(src io.Reader, name string, o *OpenOptions) (Reader, error) {
		if o.Params["refuse"] != "" {
			return nil, errors.New("refused")
		}
		return lines{src, name, &closed}, nil
	}
	saved := registry.formats
	t.Cleanup(func() { registry.formats, registry.schemes = saved, nil })
	prefix := func(p string) func([]byte) bool { return func(b []byte) bool { return bytes.HasPrefix(b, []byte(p)) } }
	RegisterFormat(Format{Name: "lines", Detect: prefix("lines"), Open: open})
	RegisterFormat(Format{Name: "lin", Detect: prefix("lines twice"), Open: open})
	RegisterFormat(Format{
		Name:          "pq",
		DetectParquet: func(columns []string) bool { return slices.Equal(columns, []string{"at"}) },
		OpenParquet: func(path, name string, o *OpenOptions) (Reader, error) {
			b, err := os.ReadFile(path)
			if err != nil || !bytes.HasPrefix(b, []byte(parquetMagic)) {
				t.Errorf("path %s holds no Parquet: %v", path, err)
			}
			return lines{strings.NewReader("lines 7"), name, &closed}, nil
		},
	})
	RegisterScheme("model:", func(name string, o *OpenOptions) (Reader, error) {
		return lines{strings.NewReader("lines 1 2 3"), name, &closed}, nil
	})
	for _, b := range [][]byte{[]byte("lines\n10\n20\n"), packGzip(t, []byte("lines\n10\n20\n")), packZstd(t, []byte("lines\n10\n20\n"))} {
		closed = false
		r, err := Open("-", Stdin(bytes.NewReader(b)))
		if err != nil {
			t.Fatal(err)
		}
		if rows := rowsOf(t, r); len(rows) != 2 || rows[1].Arrival != 20 || !closed {
			t.Errorf("rows = %v, closed %t", rows, closed)
		}
	}
	if _, err := Open("-", Stdin(strings.NewReader("lines twice"))); err == nil || !strings.Contains(err.Error(), "lin and like lines") {
		t.Errorf("Open of what two formats claim = %v", err)
	}
	if r, err := Open("-", Stdin(strings.NewReader("lines twice")), WithFormat("lin")); err != nil {
		t.Errorf("Open with the format named = %v", err)
	} else {
		r.Close()
	}
	if _, err := Open("-", Stdin(strings.NewReader("lines")), Param("refuse", "1")); err == nil || err.Error() != "-: refused" {
		t.Errorf("Open that the format refuses = %v", err)
	}
	if r, err := Open("model:x"); err != nil || len(rowsOf(t, r)) != 3 {
		t.Errorf("Open of a scheme = %v", err)
	}
	var buf bytes.Buffer
	pw := parquet.NewGenericWriter[struct {
		At int64 `parquet:"at"`
	}](&buf)
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	r, err := Open("-", Stdin(&buf), TempDir(temp))
	if err != nil {
		t.Fatal(err)
	}
	if len(folder(t, temp)) != 1 {
		t.Errorf("spooled to %q", folder(t, temp))
	}
	if rows := rowsOf(t, r); len(rows) != 1 || rows[0].Arrival != 7 || len(folder(t, temp)) != 0 {
		t.Errorf("rows = %v, left %q", rows, folder(t, temp))
	}
}

// A file of other writers: fewer columns, other integer types, unknown ones.
func TestForeignSchemas(t *testing.T) {
	type minimal struct {
		ID      int32   `parquet:"id"`
		Arrival int64   `parquet:"arrival_ns"`
		Prompt  *int64  `parquet:"prompt_tokens,optional"`
		Blocks  []int64 `parquet:"prefix_blocks,list"`
	}
	prompt := int64(12)
	path := filepath.Join(t.TempDir(), "t")
	write := func(rows any) {
		t.Helper()
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		switch rows := rows.(type) {
		case []minimal:
			err = parquet.Write(f, rows)
		case []struct {
			ID      int64   `parquet:"id"`
			Arrival int64   `parquet:"arrival_ns"`
			Prompt  float64 `parquet:"prompt_tokens"`
		}:
			err = parquet.Write(f, rows)
		case []struct {
			ID      int64 `parquet:"id"`
			Arrival int64 `parquet:"arrival_ns"`
			Mood    int64 `parquet:"mood"`
		}:
			err = parquet.Write(f, rows)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write([]minimal{{ID: 3, Arrival: 5, Prompt: &prompt, Blocks: []int64{-1}}, {ID: 4, Arrival: 6}})
	want := []Row{
		{Request: Request{ID: 3, Arrival: 5, PromptTokens: Some[int32](12), PrefixBlocks: []uint64{1<<64 - 1}}},
		{Request: Request{ID: 4, Arrival: 6, PrefixBlocks: []uint64{}}},
	}
	if diff := cmp.Diff(want, readTrace(t, path)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	prompt = 1 << 40
	write([]minimal{{Prompt: &prompt}})
	if err := firstError(path); !errors.Is(err, errRange) {
		t.Errorf("a length of 2^40 = %v, want errRange", err)
	}
	write([]struct {
		ID      int64   `parquet:"id"`
		Arrival int64   `parquet:"arrival_ns"`
		Prompt  float64 `parquet:"prompt_tokens"`
	}{{}})
	if err := firstError(path); err == nil || !strings.Contains(err.Error(), "dtype_backend") {
		t.Errorf("lengths as floats = %v", err)
	}
	write([]struct {
		ID      int64 `parquet:"id"`
		Arrival int64 `parquet:"arrival_ns"`
		Mood    int64 `parquet:"mood"`
	}{{}})
	if err := firstError(path); err == nil || !strings.Contains(err.Error(), "unknown columns mood") {
		t.Errorf("an unknown column = %v", err)
	}
	if err := firstError(path, IgnoreUnknownColumns()); err != nil {
		t.Errorf("an unknown column, to be ignored = %v", err)
	}
}

func TestReaderStopsAtABadRow(t *testing.T) {
	type row struct {
		ID      int64 `parquet:"id"`
		Arrival int64 `parquet:"arrival_ns"`
		Prompt  int32 `parquet:"prompt_tokens"`
	}
	for name, tt := range map[string]struct {
		rows   []row
		sorted string
		want   string
	}{
		"negative": {[]row{{}, {ID: 1, Prompt: -1}}, "true", "row 1: prompt_tokens is -1, negative"},
		"unsorted": {[]row{{Arrival: 2}, {ID: 1, Arrival: 1}}, "true", "row 1: arrival goes backwards"},
		"free":     {[]row{{Arrival: 2}, {ID: 1, Arrival: 1}}, "false", ""},
	} {
		path := filepath.Join(t.TempDir(), "t")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w := parquet.NewGenericWriter[row](f, parquet.KeyValueMetadata("reprise.sorted", tt.sorted), parquet.KeyValueMetadata("reprise.version", "1"))
		if _, err := w.Write(tt.rows); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := firstError(path); err != nil {
			got = err.Error()
		}
		if tt.want == "" && got != "" || !strings.HasSuffix(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestVersionIsChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := parquet.NewGenericWriter[struct {
		New int64 `parquet:"new"`
	}](f, parquet.KeyValueMetadata("reprise.version", "2"))
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrVersion) {
		t.Errorf("Open of version 2 = %v, want ErrVersion", err)
	}
}

func TestDigestIsThatOfTheFile(t *testing.T) {
	dir := t.TempDir()
	var digests []string
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(dir, name)
		writeTrace(t, path, fullHeader(), mixed(1, 1000))
		r, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		d, err := r.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	if digests[0] != digests[1] || !strings.HasPrefix(digests[0], "sha256:") || len(digests[0]) != 7+64 {
		t.Errorf("the same trace written twice: %q", digests)
	}
}

func TestWideRowsMakeSmallRowGroups(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	w, err := Create(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &Row{Outcome: Outcome{ChunkTimes: make([]time.Duration, 200_000), ChunkTokens: make([]int32, 200_000)}}
	for i := range 24 {
		r.ID = int64(i)
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.pq.RowGroups()); n < 2 {
		t.Errorf("five million chunks lie in %d row group", n)
	}
	if rows := rowsOf(t, f); len(rows) != 24 || len(rows[23].ChunkTokens) != 200_000 {
		t.Errorf("%d rows", len(rows))
	}
}
