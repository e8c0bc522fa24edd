package main

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reprise/traceformat"
	"reprise/traceformat/convert"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"synth": main})
}

// TestScript runs testdata/script: one behaviour a file, as a user sees it.
// Beside the usual commands there are
//
//	azure SEED ROWS OUT   a made-up trace in Azure's format, bursty, lengths dependent
//	rows FILE N [TOLERANCE]   the trace at FILE has N rows, give or take the share
//	validate FILE FORMAT...   it breaks no rule, and can be written in these formats
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"azure": azure, "rows": rows, "validate": validate},
	})
}

func azure(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: azure SEED ROWS OUT")
	}
	var seed uint64
	var n int
	fmt.Sscan(args[0], &seed)
	fmt.Sscan(args[1], &n)
	rng := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	b.WriteString("TIMESTAMP,ContextTokens,GeneratedTokens\n")
	at := 0.0
	for range n {
		rate := 2.0
		if int(at/90)%2 == 1 {
			rate = 6
		}
		at += rng.ExpFloat64() / rate
		in := 20 + rng.ExpFloat64()*400
		out := 10 + rng.ExpFloat64()*20 + 100*math.Abs(math.Sin(in/150))
		fmt.Fprintf(&b, "2023-11-16 %02d:%02d:%02d.%07d,%d,%d\n", 10+int(at/3600), int(at/60)%60, int(at)%60, int(math.Mod(at, 1)*1e7), int(in), int(out))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(b.String()), 0o666))
}

func rows(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: rows FILE N [TOLERANCE]")
	}
	var want, tolerance float64
	fmt.Sscan(args[1], &want)
	if len(args) > 2 {
		fmt.Sscan(args[2], &tolerance)
	}
	r, err := traceformat.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer r.Close()
	n := 0.0
	for _, err := range r.All() {
		ts.Check(err)
		n++
	}
	if math.Abs(n-want) > tolerance*want {
		ts.Fatalf("%s has %v rows, want %v", args[0], n, want)
	}
}

func validate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: validate FILE FORMAT...")
	}
	r, err := traceformat.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	for v := range traceformat.Validate(r) {
		if !v.Note {
			ts.Fatalf("%s: %v", args[0], v)
		}
	}
	ts.Check(r.Close())
	for _, format := range args[1:] {
		r, err := traceformat.Open(ts.MkAbs(args[0]))
		ts.Check(err)
		var b bytes.Buffer
		format, omit := strings.CutSuffix(format, "-without-blocks")
		_, err = convert.Export(format, &b, r, &convert.ExportOptions{Start: time.Unix(0, 0).UTC(), OmitBlocks: omit})
		ts.Check(err)
		ts.Check(r.Close())
		back, err := traceformat.Open("-", traceformat.Stdin(&b), traceformat.WithFormat(format), traceformat.Param("lengths", "cumulative"))
		ts.Check(err)
		var got [][3]int
		for r, err := range back.All() {
			ts.Check(err)
			got = append(got, shape(r, omit))
		}
		ts.Check(back.Close())
		// What was written there says the same here.
		r, err = traceformat.Open(ts.MkAbs(args[0]))
		ts.Check(err)
		n := 0
		for row, err := range r.All() {
			ts.Check(err)
			if n == len(got) || got[n] != shape(row, omit || format == "azure") {
				ts.Fatalf("%s as %s: row %d of %d reads otherwise", args[0], format, n, len(got))
			}
			n++
		}
		ts.Check(r.Close())
		if n == 0 || n != len(got) {
			ts.Fatalf("%s as %s has %d of %d rows", args[0], format, len(got), n)
		}
	}
}

// shape is what every format keeps of a row: prompt, output, blocks.
func shape(r *traceformat.Row, withoutBlocks bool) [3]int {
	blocks := len(r.PrefixBlocks)
	if withoutBlocks {
		blocks = 0
	}
	return [3]int{int(r.PromptTokens.Or(-1)), int(r.OutputTokens.Or(-1)), blocks}
}
