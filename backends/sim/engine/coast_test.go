package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Passes that are coasted through leave everything as they would one by one:
// times, answers, cache hits, preemptions, and the order in which blocks will be
// evicted.
func TestCoastIsStepByStep(t *testing.T) {
	coasted := 0
	rapid.Check(t, func(t *rapid.T) {
		c := Config{
			Cost:      Cost{Step: 1e6, Token: 1e4, KV: 333.3, Admit: float64(rapid.IntRange(0, 3).Draw(t, "admit")) * 7e5},
			BlockSize: rapid.IntRange(1, 6).Draw(t, "block size"), Blocks: rapid.IntRange(8, 60).Draw(t, "blocks"),
			MaxSeqs: rapid.IntRange(1, 8).Draw(t, "max seqs"), MaxBatchedTokens: rapid.IntRange(1, 30).Draw(t, "budget"),
			PrefixCaching: rapid.Bool().Draw(t, "caching"), Priority: rapid.Bool().Draw(t, "priority"),
			Batching: Batching(rapid.IntRange(0, 2).Draw(t, "batching")), StaticSize: 3, VocabSize: 50,
		}
		c.MaxModelLen = max(2, (c.Blocks-1)*c.BlockSize)
		type arrival struct {
			at time.Duration
			r  Request
		}
		var arrivals []arrival
		at := time.Duration(0)
		for range rapid.IntRange(1, 20).Draw(t, "requests") {
			at += time.Duration(rapid.IntRange(0, 20).Draw(t, "gap")) * time.Millisecond
			n := rapid.IntRange(1, c.MaxModelLen-1).Draw(t, "prompt")
			r := Request{
				PromptLen: n, MaxTokens: rapid.IntRange(1, c.MaxModelLen-n).Draw(t, "answer"), Priority: int64(rapid.IntRange(0, 2).Draw(t, "urgency")),
				Own: uint64(rapid.IntRange(0, 3).Draw(t, "own")), Salt: uint64(rapid.IntRange(0, 1).Draw(t, "salt")),
				StopAfter: rapid.IntRange(0, 30).Draw(t, "stop"), MinTokens: rapid.IntRange(0, 2).Draw(t, "least"), Watch: rapid.IntRange(0, 9).Draw(t, "watch"),
			}
			if k := rapid.IntRange(0, n/c.BlockSize).Draw(t, "shared"); k > 0 {
				for b := range k {
					r.Hashes = append(r.Hashes, 1000+uint64(b))
				}
			}
			arrivals = append(arrivals, arrival{at, r})
		}
		play := func(coast bool) string {
			e, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			var all []*Request
			var ends []time.Duration
			now, next := time.Duration(0), 0
			for {
				for next < len(arrivals) && arrivals[next].at <= now {
					r := arrivals[next].r
					if err := e.Submit(arrivals[next].at, &r); err != nil {
						t.Fatal(err)
					}
					all = append(all, &r)
					next++
				}
				until := time.Duration(1 << 62)
				if next < len(arrivals) {
					until = arrivals[next].at
				}
				if coast {
					n := 0
					if now, n = e.Coast(now, until, &ends); n > 0 {
						coasted += n
						if err := e.checkPool(); err != nil {
							t.Fatal(err)
						}
						continue
					}
				}
				d, ok := e.Step(now)
				if !ok {
					wake, soon := e.Wake()
					if !soon {
						wake = until
					}
					if wake = min(wake, until); wake == 1<<62 {
						break
					}
					now = max(now, wake)
					continue
				}
				// What arrives during the pass is handed over then.
				end := now + d
				for next < len(arrivals) && arrivals[next].at < end {
					r := arrivals[next].r
					if err := e.Submit(arrivals[next].at, &r); err != nil {
						t.Fatal(err)
					}
					all = append(all, &r)
					next++
				}
				now = end
				e.Done(now)
				ends = append(ends, now)
			}
			var s strings.Builder
			for i, r := range all {
				fmt.Fprintln(&s, i, r.Scheduled, r.First, r.Last, r.Output, r.CachedTokens, r.Preemptions, r.Finish)
			}
			for b := e.pool.blocks[0].next; b != 0; b = e.pool.blocks[b].next {
				fmt.Fprint(&s, " ", b, ":", e.pool.blocks[b].hash)
			}
			fmt.Fprintf(&s, "\n%+v\n%v", e.Stats(), ends)
			return s.String()
		}
		want := play(false)
		if got := play(true); got != want {
			t.Fatalf("coasting\n%s\nstep by step\n%s", got, want)
		}
	})
	if coasted < 1000 {
		t.Errorf("only %d passes were coasted through", coasted)
	}
}

func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := newTable(20)
		want := map[uint64]int32{}
		for range rapid.IntRange(0, 200).Draw(t, "operations") {
			key := uint64(rapid.IntRange(1, 4).Draw(t, "low")) + 64*uint64(rapid.IntRange(0, 4).Draw(t, "high"))
			if rapid.Bool().Draw(t, "drop") {
				tab.drop(key)
				delete(want, key)
			} else if len(want) < 20 {
				tab.put(key, int32(key))
				want[key] = int32(key)
			}
			var keys []uint64
			for k := range want {
				keys = append(keys, k)
				if b, ok := tab.get(k); !ok || b != want[k] {
					t.Fatalf("get(%d) = %d, %t of %v", k, b, ok, keys)
				}
			}
			n := 0
			for _, s := range tab.slots {
				if s.key != 0 {
					n++
				}
			}
			if n != len(want) {
				t.Fatalf("%d keys, want %v", n, slices.Sorted(slices.Values(keys)))
			}
		}
	})
}
