// Command demo writes the trace of `make demo`: 20 seconds of invented traffic
// of three tenants with a burst in the middle. Every choice comes from one
// seed, so the file can be made again byte for byte.
//
//	go run ./testdata/demo testdata/demo.parquet
package main

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"reprise/traceformat"
)

const blockSize = 16

// A tenant opens conversations and goes on with them.
type tenant struct {
	client, class string
	system        int     // tokens of the system prompt, shared by all its conversations
	rate          float64 // conversations opened a second
	turns         float64 // mean turns of one
	input, output float64 // median tokens of a user's message and of an answer
}

var tenants = []tenant{
	{"chat", "interactive", 512, 8, 2.5, 60, 140},
	{"code", "completion", 1024, 6, 1, 900, 24},
	{"agent", "tools", 2048, 2, 4, 350, 90},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo OUT.parquet")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func write(path string) error {
	rows := generate(rand.New(rand.NewPCG(20, 1)))
	w, err := traceformat.Create(path, &traceformat.Header{
		Origin:  traceformat.Origin{Program: "testdata/demo", Dialect: "synthetic"},
		Blocks:  traceformat.Blocks{Size: blockSize, Scheme: "sequence", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialDropped},
		Lengths: traceformat.LengthsCumulative,
		Rows:    traceformat.Counts{Seen: int64(len(rows)), Recorded: int64(len(rows))},
	}, traceformat.Overwrite())
	if err != nil {
		return err
	}
	for i := range rows {
		if err := w.Write(&rows[i]); err != nil {
			return err
		}
	}
	return w.Close()
}

func generate(rng *rand.Rand) []traceformat.Row {
	const span = 20 * time.Second
	lognormal := func(median, sigma float64) int {
		return max(1, int(median*math.Exp(sigma*rng.NormFloat64())))
	}
	var rows []traceformat.Row
	block, session := uint64(0), int64(0)
	blocks := func(n int) (ids []uint64) {
		for range n {
			block++
			ids = append(ids, block)
		}
		return ids
	}
	for _, t := range tenants {
		system := blocks(t.system / blockSize)
		for at := 0.0; ; {
			// Between 9 and 11 s four times as many conversations begin.
			rate := t.rate
			if at > 9 && at < 11 {
				rate *= 4
			}
			at += rng.ExpFloat64() / rate
			start := time.Duration(at * float64(time.Second))
			if start >= span {
				break
			}
			session++
			prompt, ids := t.system, slices.Clone(system)
			turns := 1
			for rng.Float64() < 1-1/t.turns {
				turns++
			}
			var answered time.Duration
			for turn := range turns {
				var r traceformat.Row
				r.Client, r.Class, r.Model, r.Endpoint = t.client, t.class, "demo", traceformat.EndpointCompletions
				r.Session, r.Turn = traceformat.Some(session), traceformat.Some(int32(turn))
				r.Arrival = start
				if turn > 0 {
					think := time.Duration(float64(lognormal(1500, 0.6)) * float64(time.Millisecond))
					r.Arrival, r.Think = answered+think, traceformat.Some(think)
				}
				if r.Arrival >= span {
					break
				}
				prompt += lognormal(t.input, 0.8)
				output := min(lognormal(t.output, 0.7), 1000)
				ids = append(ids, blocks(prompt/blockSize-len(ids))...)
				r.PrefixBlocks = slices.Clone(ids)
				r.PromptTokens, r.OutputTokens = traceformat.Some(int32(prompt)), traceformat.Some(int32(output))
				rows = append(rows, r)
				// The answer becomes part of the next prompt; it takes about
				// 20 ms a token to write and read.
				prompt += output
				answered = r.Arrival + time.Duration(output)*20*time.Millisecond
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b traceformat.Row) int { return cmp.Compare(a.Arrival, b.Arrival) })
	last := map[int64]int64{}
	for i := range rows {
		r := &rows[i]
		r.ID = int64(i)
		if parent, ok := last[r.Session.V]; ok {
			r.Parent = traceformat.Some(parent)
		}
		last[r.Session.V] = r.ID
	}
	return rows
}
