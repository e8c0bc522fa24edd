package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"reprise/traceformat"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"trace": main})
}

// TestScript runs testdata/script: one behaviour a file, as a user sees it.
// Beside the usual commands there are
//
//	pack gzip|zstd FILE OUT   compress a file
//	cut FILE N OUT            the first N bytes of a file, or all but the last -N
//	reverse FILE OUT          a trace as Parquet, its rows in the opposite order
//	spoil FILE OUT            a trace as Parquet that breaks a rule in rows 1 to 3
//	journal FILE OUT          a trace as the journal of a recorder that was killed
//
// The condition [shared] holds where the public traces are, in $TRACES.
func TestScript(t *testing.T) {
	shared := os.Getenv("REPRISE_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "..", "shared")
	}
	traces, err := filepath.Abs(filepath.Join(shared, "traces"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("TRACES", traces)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "shared" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			_, err := os.Stat(traces)
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"pack": pack, "cut": cutFile, "reverse": reverse, "journal": journal, "spoil": spoil,
		},
	})
}

func cutFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: cut FILE N OUT")
	}
	data := ts.ReadFile(args[0])
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	if n < 0 {
		n += len(data)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(data[:n]), 0o666))
}

func pack(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: pack gzip|zstd FILE OUT")
	}
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if args[0] == "zstd" {
		z, err := zstd.NewWriter(&b)
		ts.Check(err)
		w = z
	}
	_, err := w.Write([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
	ts.Check(w.Close())
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), b.Bytes(), 0o666))
}

// rowsOf reads a trace into memory.
func rowsOf(ts *testscript.TestScript, name string) (*traceformat.Header, []*traceformat.Row) {
	r, err := traceformat.Open(ts.MkAbs(name))
	ts.Check(err)
	defer r.Close()
	var rows []*traceformat.Row
	for row, err := range r.All() {
		ts.Check(err)
		rows = append(rows, row.Clone())
	}
	return r.Header(), rows
}

func reverse(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: reverse FILE OUT")
	}
	h, rows := rowsOf(ts, args[0])
	w, err := traceformat.Create(ts.MkAbs(args[1]), h)
	ts.Check(err)
	for _, row := range slices.Backward(rows) {
		ts.Check(w.Write(row))
	}
	ts.Check(w.Close())
}

func spoil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: spoil FILE OUT")
	}
	h, rows := rowsOf(ts, args[0])
	rows[1].Endpoint = "telepathy"
	rows[2].TTFT, rows[2].E2E = traceformat.Some(2*time.Second), traceformat.Some(time.Second)
	rows[3].Parent = traceformat.Some[int64](99)
	w, err := traceformat.Create(ts.MkAbs(args[1]), h)
	ts.Check(err)
	for _, row := range rows {
		ts.Check(w.Write(row))
	}
	ts.Check(w.Close())
}

func journal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: journal FILE OUT")
	}
	h, rows := rowsOf(ts, args[0])
	path := ts.MkAbs(args[1])
	j, err := traceformat.CreateJournal(path, h)
	ts.Check(err)
	for _, row := range slices.Backward(rows) {
		ts.Check(j.Append(row))
	}
	ts.Check(j.Sync())
	// What the disk held at the moment of death.
	data, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(j.Close())
	ts.Check(os.WriteFile(path, data, 0o666))
}
