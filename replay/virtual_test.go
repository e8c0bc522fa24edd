package replay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reprise/backends/sim"
	"reprise/backends/sim/engine"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// virtually plays a plan in virtual time and returns its rows by id.
func virtually(t interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}, p *Plan, c VirtualConfig) (map[requestKey]traceformat.Row, *Virtual, *Stats) {
	t.Helper()
	rows := map[requestKey]traceformat.Row{}
	c.Record = func(row *traceformat.Row) error {
		if err := row.Check(); err != nil {
			t.Fatalf("request %d: %v", row.ID, err)
		}
		rows[requestKey{row.ID, row.Lap}] = *row.Clone()
		return nil
	}
	v, err := NewVirtual(p, c)
	if err != nil {
		t.Fatal(err)
	}
	stats, err := v.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(rows)) != p.Rows || stats.Interrupted {
		t.Fatalf("%d rows of %d, %+v", len(rows), p.Rows, stats)
	}
	return rows, v, stats
}

func virtualEngine(t testing.TB, options map[string]string) (engine.Config, Target) {
	t.Helper()
	o, err := sim.ParseOptions(options)
	if err != nil {
		t.Fatal(err)
	}
	c, info, err := sim.Virtual(o)
	if err != nil {
		t.Fatal(err)
	}
	return c, Target{MaxLen: info.MaxLen, VocabSize: info.VocabSize, MinID: info.MinID}
}

// A run in virtual time names blocks where a real one sends tokens. An engine
// that is given the tokens does the same to the nanosecond: what it finds in its
// cache, whom it preempts, when each token comes.
func TestVirtualAgainstTokens(t *testing.T) {
	preempted, cached := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		trace := blocksOf(int32(rapid.SampledFrom([]int{1, 4, 7, 16}).Draw(t, "trace block")))
		size := int(trace.header.Blocks.Size)
		for i := range rapid.IntRange(1, 25).Draw(t, "requests") {
			n := rapid.IntRange(1, 70).Draw(t, "prompt")
			var blocks []uint64
			for b := range rapid.IntRange(0, (n+size-1)/size).Draw(t, "named") {
				kind := rapid.IntRange(0, 1).Draw(t, "kind")
				if b > 0 { // an id stands for a whole prefix
					kind += 2 * int(blocks[b-1])
				}
				blocks = append(blocks, uint64(kind+1)<<1)
				blocks[b] = mix(blocks[b], uint64(b))
			}
			trace.request(n, rapid.IntRange(1, 40).Draw(t, "output"), blocks...)
			r := &trace.rows[i]
			if i > 0 {
				r.Arrival = trace.rows[i-1].Arrival + time.Duration(rapid.IntRange(0, 30).Draw(t, "gap"))*time.Millisecond
			}
			if rapid.IntRange(0, 5).Draw(t, "choices") == 0 {
				n := int32(rapid.IntRange(2, 4).Draw(t, "n"))
				r.N, r.OutputTokens.V = traceformat.Some(n), n*r.OutputTokens.V
			}
		}
		c := engine.Config{
			Cost: engine.Cost{Step: 3e6, Token: 1e4, KV: 77.7, Admit: 2e6}, BlockSize: rapid.SampledFrom([]int{1, 4, 5, 16}).Draw(t, "engine block"),
			MaxSeqs: rapid.IntRange(1, 8).Draw(t, "max seqs"), MaxBatchedTokens: rapid.IntRange(8, 100).Draw(t, "budget"),
			PrefixCaching: rapid.IntRange(0, 4).Draw(t, "caching") > 0, Batching: engine.Batching(rapid.IntRange(0, 2).Draw(t, "batching")), StaticSize: 4,
			VocabLow: 1000, VocabSize: 30000, MaxModelLen: 150,
		}
		c.Blocks = 2 + 150/c.BlockSize + rapid.IntRange(0, 300/c.BlockSize).Draw(t, "blocks")
		o := Defaults()
		o.Loop = rapid.IntRange(1, 2).Draw(t, "laps")
		p, err := NewPlan(trace.source(), o, Target{MaxLen: c.MaxModelLen, VocabSize: 31000, MinID: 1000})
		if err != nil {
			t.Fatal(err)
		}
		got, v, _ := virtually(t, p, VirtualConfig{Engine: c, Chunks: true})

		// The reference: tokens, and passes one by one.
		e, err := engine.New(c)
		if err != nil {
			t.Fatal(err)
		}
		type sent struct {
			key  requestKey
			at   time.Duration
			reqs []*engine.Request
		}
		var all []sent
		for it, err := range p.allItems() {
			if err != nil {
				t.Fatal(err)
			}
			s := sent{key: requestKey{it.row.ID, it.lap}, at: it.due}
			ids := p.prompts.append(nil, &it.row.Request, it.prompt, it.lap)
			n := choices(&it.row.Request)
			for k := range n {
				r := &engine.Request{Prompt: ids, MaxTokens: it.output / n}
				if n > 1 { // sampled: nobody else's
					r.Seed = mix(uint64(len(all)+1), uint64(k+1))
				}
				s.reqs = append(s.reqs, r)
			}
			all = append(all, s)
		}
		now, next := time.Duration(0), 0
		submit := func(to time.Duration) {
			for ; next < len(all) && all[next].at <= to; next++ {
				for _, r := range all[next].reqs {
					if err := e.Submit(all[next].at, r); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for {
			submit(now)
			d, ok := e.Step(now)
			if ok {
				submit(now + d - 1)
				now += d
				e.Done(now)
				continue
			}
			wake, soon := e.Wake()
			if next < len(all) && (!soon || all[next].at < wake) {
				wake, soon = all[next].at, true
			}
			if !soon {
				break
			}
			now = max(now, wake)
		}
		for _, s := range all {
			row := got[s.key]
			want := fmt.Sprintln(firstOf(s.reqs)-s.at, lastOf(s.reqs)-s.at, s.reqs[0].CachedTokens)
			if have := fmt.Sprintln(row.TTFT.V, row.E2E.V, row.ServedCachedTokens.V); have != want || row.Result != traceformat.ResultOK {
				t.Fatalf("request %v: first token, last, cached = %swith tokens %s", s.key, have, want)
			}
			tokens := int32(0)
			for i, n := range row.ChunkTokens {
				if tokens += n; i > 0 && row.ChunkTimes[i] <= row.ChunkTimes[i-1] {
					t.Fatalf("request %v: chunk %d at %v after %v", s.key, i, row.ChunkTimes[i], row.ChunkTimes[i-1])
				}
			}
			if tokens != row.ServedOutputTokens.V || row.ChunkTimes[0] != row.TTFT.V || row.ChunkTimes[len(row.ChunkTimes)-1] != row.E2E.V {
				t.Fatalf("request %v: %d tokens in chunks from %v to %v; it has %d from %v to %v", s.key, tokens, row.ChunkTimes[0],
					row.ChunkTimes[len(row.ChunkTimes)-1], row.ServedOutputTokens.V, row.TTFT.V, row.E2E.V)
			}
			cached += s.reqs[0].CachedTokens
		}
		a, b := e.Stats(), v.State().Stats
		if a != b {
			t.Fatalf("the engine's counters: %+v, with tokens %+v", b, a)
		}
		preempted += int(a.Preemptions)
	})
	if preempted < 5 || cached < 200 {
		t.Errorf("%d preemptions and %d cached tokens: too few to say anything", preempted, cached)
	}
}

func firstOf(reqs []*engine.Request) time.Duration {
	return slices.MinFunc(reqs, func(a, b *engine.Request) int { return int(a.First - b.First) }).First
}

func lastOf(reqs []*engine.Request) time.Duration {
	return slices.MaxFunc(reqs, func(a, b *engine.Request) int { return int(a.Last - b.Last) }).Last
}

// The same trace over sockets and in virtual time: counts equal, times equal but
// for what sockets cost.
func TestVirtualAgainstRealTime(t *testing.T) {
	trace := blocksOf(16)
	for i := range 30 {
		trace.request(64+i, 12, 1, 2+uint64(i%3), uint64(100+i%6))
		r := &trace.rows[i]
		r.Arrival = time.Duration(i) * 40 * time.Millisecond
		switch i {
		case 7:
			r.Stream = traceformat.Some(false)
		case 11:
			r.N, r.OutputTokens = traceformat.Some[int32](2), traceformat.Some[int32](24)
		case 15:
			r.Result, r.OutputTokens, r.MaxTokens = traceformat.ResultClientAbort, traceformat.Some[int32](4), traceformat.Some[int32](300)
		}
		if i%5 == 4 {
			r.Session, r.Think = traceformat.Some[int64](1), traceformat.Some(20*time.Millisecond)
		}
	}
	options := map[string]string{"num-gpu-blocks": "200"}
	b, info, url := startSim(t, options)
	c, target := virtualEngine(t, options)
	o := Defaults()
	o.Sessions, o.Aborts = SessionsThink, AbortToken
	plan := func() *Plan {
		p, err := NewPlan(trace.source(), o, target)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	got, _, _ := virtually(t, plan(), VirtualConfig{Engine: c, Chunks: true})

	client, err := wire.New(url, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	real := plan()
	if real.MaxLen != info.MaxLen {
		t.Errorf("a context of %d tokens, the server's %d", real.MaxLen, info.MaxLen)
	}
	var ttft, e2e []time.Duration
	_, err = real.Run(t.Context(), Config{Backend: b, Client: client, Record: func(row *traceformat.Row) error {
		v := got[requestKey{row.ID, row.Lap}]
		say := func(r *traceformat.Row) string {
			s := fmt.Sprint(r.Result, r.Error, " status ", r.Status.V, " ", r.FinishReason, " prompt ", r.ServedPromptTokens, " cached ", r.ServedCachedTokens, " TTFT ", r.TTFT.OK, " E2E ", r.E2E.OK)
			if r.Result == traceformat.ResultOK { // else the server may be a token ahead
				s += fmt.Sprint(" output ", r.ServedOutputTokens)
			}
			return s
		}
		if a, b := say(&v), say(row); a != b {
			t.Errorf("request %d: %s in virtual time, %s in real time", row.ID, a, b)
		}
		if row.TTFT.OK {
			ttft = append(ttft, max(row.TTFT.V-v.TTFT.V, v.TTFT.V-row.TTFT.V))
		}
		e2e = append(e2e, max(row.E2E.V-v.E2E.V, v.E2E.V-row.E2E.V))
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ttft)
	slices.Sort(e2e)
	t.Logf("TTFT is %v apart in the median, E2E %v", ttft[len(ttft)/2], e2e[len(e2e)/2])
	// A pass takes 6.5 ms; half as much again is for a busy machine.
	if m := max(ttft[len(ttft)/2], e2e[len(e2e)/2]); m > 10*time.Millisecond {
		t.Errorf("times are %v apart in the median", m)
	}
}

// What a plan can ask for beyond sending at a time.
func TestVirtualPolicies(t *testing.T) {
	c, target := virtualEngine(t, nil)
	run := func(t *testing.T, trace *rowsOf, edit func(*Options)) (map[requestKey]traceformat.Row, *Virtual, *Stats) {
		o := Defaults()
		edit(&o)
		p, err := NewPlan(trace.source(), o, target)
		if err != nil {
			t.Fatal(err)
		}
		return virtually(t, p, VirtualConfig{Engine: c})
	}
	t.Run("sheds", func(t *testing.T) {
		rows, _, s := run(t, every(40, time.Millisecond), func(o *Options) { o.MaxInFlight = 7 })
		if s.Peak != 7 || s.Shed == 0 || s.Sent+s.Shed != 40 {
			t.Errorf("peak %d, %d sent, %d shed", s.Peak, s.Sent, s.Shed)
		}
		if r := rows[requestKey{39, 0}]; r.Result != traceformat.ResultShed || r.Sent.OK {
			t.Errorf("the last is %s, sent %v", r.Result, r.Sent)
		}
	})
	t.Run("closed loop", func(t *testing.T) {
		rows, _, s := run(t, every(12, time.Millisecond), func(o *Options) { o.Concurrency = 3 })
		if s.Peak != 3 {
			t.Errorf("%d in flight at most, want 3", s.Peak)
		}
		var ends []time.Duration
		for i := range 12 {
			ends = append(ends, rows[requestKey{int64(i), 0}].Close.V)
		}
		for i := 3; i < 12; i++ {
			if at := rows[requestKey{int64(i), 0}].Sent.V; at != ends[i-3] {
				t.Errorf("request %d is sent at %v, the user came free at %v", i, at, ends[i-3])
			}
		}
	})
	t.Run("abort", func(t *testing.T) {
		trace := every(2, time.Second)
		for i := range trace.rows {
			r := &trace.rows[i]
			r.Result, r.MaxTokens, r.Abort = traceformat.ResultClientAbort, traceformat.Some[int32](500), traceformat.Some(123*time.Millisecond)
			r.OutputTokens = traceformat.Some[int32](9)
		}
		rows, v, _ := run(t, trace, func(o *Options) { o.Aborts = AbortTime })
		if r := rows[requestKey{1, 0}]; r.Abort.V != 123*time.Millisecond || r.Result != traceformat.ResultClientAbort || r.Close.V != 1123*time.Millisecond {
			t.Errorf("hung up after %v at %v: %s", r.Abort.V, r.Close.V, r.Result)
		}
		if s := v.State(); s.Aborted != 2 || s.UsedBlocks != 0 {
			t.Errorf("the engine counts %d aborts and holds %d blocks", s.Aborted, s.UsedBlocks)
		}
		rows, _, _ = run(t, trace, func(o *Options) { o.Aborts = AbortToken })
		if r := rows[requestKey{0, 0}]; r.ServedOutputTokens.V != 9 || r.Abort.V != r.E2E.V {
			t.Errorf("hung up after %d tokens at %v, the last of them came at %v", r.ServedOutputTokens.V, r.Abort.V, r.E2E.V)
		}
	})
	t.Run("shards", func(t *testing.T) {
		n := int64(0)
		for i := range 3 {
			_, _, s := run(t, every(50, time.Millisecond), func(o *Options) { o.Shard = Shard{i, 3} })
			n += s.Sent
		}
		if n != 50 {
			t.Errorf("three shards send %d of 50", n)
		}
	})
	t.Run("sessions", func(t *testing.T) {
		trace := every(3, 10*time.Millisecond)
		for i := range trace.rows {
			trace.rows[i].Session, trace.rows[i].Think = traceformat.Some[int64](5), traceformat.Some(time.Second)
		}
		rows, _, s := run(t, trace, func(o *Options) { o.Sessions, o.Speedup = SessionsThink, 2 })
		for i := 1; i < 3; i++ {
			if at, before := rows[requestKey{int64(i), 0}].Sent.V, rows[requestKey{int64(i - 1), 0}].Close.V; at != before+time.Second/2 {
				t.Errorf("turn %d is sent %v after the answer, want 500ms", i, at-before)
			}
		}
		if s.Elapsed < time.Second {
			t.Errorf("the run took %v", s.Elapsed)
		}
	})
}

// A run that is stopped records what was in flight.
func TestVirtualIsInterrupted(t *testing.T) {
	c, target := virtualEngine(t, nil)
	p, err := NewPlan(every(5000, 3*time.Millisecond).source(), Defaults(), target)
	if err != nil {
		t.Fatal(err)
	}
	drain := make(chan struct{})
	n := 0
	conf := VirtualConfig{Engine: c, Drain: drain, Record: func(row *traceformat.Row) error {
		if n++; n == 100 {
			close(drain)
		}
		return nil
	}}
	v, err := NewVirtual(p, conf)
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.Run(t.Context())
	if err != nil || !s.Interrupted || s.Sent+s.Unsent != 5000 || int64(n) != s.Sent || s.Unsent == 0 {
		t.Errorf("drained: %+v, %d rows, %v", s, n, err)
	}
	conf.Drain = nil
	conf.Record = func(row *traceformat.Row) error { return fmt.Errorf("disk full") }
	if v, err = NewVirtual(p, conf); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a failing record gives %v", err)
	}
}

// BenchmarkVirtual is a request of Azure's mean lengths at 16 a second.
func BenchmarkVirtual(b *testing.B) {
	c, target := virtualEngine(b, nil)
	trace := &rowsOf{}
	for i := range 1000 {
		trace.request(1155, 211)
		trace.rows[i].Arrival = time.Duration(i) * 60 * time.Millisecond
	}
	o := Defaults()
	o.Loop = 1 + b.N/1000
	p, err := NewPlan(trace.source(), o, target)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	v, err := NewVirtual(p, VirtualConfig{Engine: c})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := v.Run(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(p.Rows), "ns/request")
}
