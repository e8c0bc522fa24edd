package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reprise/backends/sim"
	"reprise/traceformat"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata/script")

func TestMain(m *testing.M) {
	sim.MaybeServe()
	testscript.Main(m, map[string]func(){"capture": main})
}

// TestScript runs testdata/script: one behaviour a file, as a user sees it.
// Beside the usual commands there are
//
//	traffic OUT OFFSET EVERY   a trace of 200 requests whose clock is OFFSET ahead, without each EVERYth
//	mode FILE MODE             fail unless the file has that mode
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"traffic": traffic, "mode": mode,
		},
	})
}

func traffic(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: traffic OUT OFFSET EVERY")
	}
	offset, err := time.ParseDuration(args[1])
	ts.Check(err)
	every, err := strconv.Atoi(args[2])
	ts.Check(err)
	rng := rand.New(rand.NewPCG(1, 2))
	h := &traceformat.Header{Start: time.Unix(1_800_000_000, 0).Add(offset)}
	w, err := traceformat.Create(ts.MkAbs(args[0]), h)
	ts.Check(err)
	at := time.Duration(0)
	for i := range 200 {
		at += time.Duration(rng.IntN(200)) * time.Millisecond
		row := &traceformat.Row{}
		row.ID, row.Arrival, row.Endpoint = int64(i), at, traceformat.EndpointChat
		row.TTFT, row.TTFTSource = traceformat.Some(50*time.Millisecond), traceformat.TTFTContentEvent
		row.E2E = traceformat.Some(time.Duration(100+rng.IntN(1000)) * time.Millisecond)
		row.Result, row.Status = traceformat.ResultOK, traceformat.Some[int16](200)
		if i%every != 0 {
			ts.Check(w.Write(row))
		}
	}
	ts.Check(w.Close())
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode FILE MODE")
	}
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}
