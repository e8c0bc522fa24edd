package replay

import (
	"iter"
	"slices"
	"testing"
	"time"

	"reprise/traceformat"
)

// items yields what one shard sends of allItems.
func (p *Plan) items() iter.Seq2[*item, error] {
	return func(yield func(*item, error) bool) {
		for it, err := range p.allItems() {
			if err == nil && !p.Options.Shard.has(it) {
				continue
			}
			if !yield(it, err) || err != nil {
				return
			}
		}
	}
}

// n shards send what one big run sends: every request once, at its time, with
// its prompt, and no conversation in two places.
func TestShardsAreOneRun(t *testing.T) {
	trace := every(500, 10*time.Millisecond)
	for i := range trace.rows {
		trace.rows[i].Session = traceformat.Some(int64(i / 5))
	}
	type sent struct {
		due    time.Duration
		prompt []uint32
	}
	plan := func(s Shard) (map[int64]sent, *Plan) {
		o := Defaults()
		o.Shard = s
		p, err := NewPlan(trace.source(), o, Target{})
		if err != nil {
			t.Fatal(err)
		}
		m := map[int64]sent{}
		for it, err := range p.items() {
			if err != nil {
				t.Fatal(err)
			}
			m[it.row.ID] = sent{it.due, p.prompts.append(nil, &it.row.Request, it.prompt, it.lap)}
		}
		if p.Rows != int64(len(m)) {
			t.Errorf("shard %+v: the plan says %d requests and has %d", s, p.Rows, len(m))
		}
		return m, p
	}
	whole, p := plan(Shard{})
	owner := map[int64]int{}
	total := 0
	for i := range 3 {
		part, q := plan(Shard{i, 3})
		if q.All != p.Rows || p.All != p.Rows {
			t.Errorf("shard %d knows of %d requests in all, the whole run of %d; want %d", i, q.All, p.All, p.Rows)
		}
		if q.Digest != p.Digest || q.Base != p.Base {
			t.Errorf("shard %d: digest or base differ from the whole run's", i)
		}
		if len(part) < 100 {
			t.Errorf("shard %d has %d of 500 requests", i, len(part))
		}
		total += len(part)
		for id, s := range part {
			if w := whole[id]; w.due != s.due || !slices.Equal(w.prompt, s.prompt) {
				t.Fatalf("shard %d sends request %d otherwise than the whole run", i, id)
			}
			if o, ok := owner[id/5]; ok && o != i {
				t.Fatalf("session %d is in shards %d and %d", id/5, o, i)
			}
			owner[id/5] = i
		}
	}
	if total != len(whole) {
		t.Errorf("the shards send %d requests, the whole run %d", total, len(whole))
	}
}

func TestShardFromEnv(t *testing.T) {
	tests := []struct {
		env  map[string]string
		want Shard
		ok   bool
		err  string
	}{
		{nil, Shard{}, false, ""},
		{map[string]string{"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "4"}, Shard{2, 4}, true, ""},
		{map[string]string{"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}, Shard{2, 4}, true, ""},
		{map[string]string{"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4"}, Shard{}, false, "the scheduler says shard 4 of 4, which is none: say --shard i/n"},
		{map[string]string{"JOB_COMPLETION_INDEX": "x", "JOB_COMPLETIONS": "4"}, Shard{}, false, `JOB_COMPLETION_INDEX is "x", want a number: say --shard i/n`},
	}
	for _, tt := range tests {
		got, ok, err := ShardFromEnv(func(k string) string { return tt.env[k] })
		msg := ""
		if err != nil {
			msg = err.Error()
			got = Shard{}
		}
		if got != tt.want || ok != tt.ok || msg != tt.err {
			t.Errorf("ShardFromEnv(%v) = %v, %t, %q; want %v, %t, %q", tt.env, got, ok, msg, tt.want, tt.ok, tt.err)
		}
	}
}

// However the shape of the load, each shard knows what all of them send.
func TestShardsKnowTheWhole(t *testing.T) {
	trace := every(300, 10*time.Millisecond)
	for i := range trace.rows {
		trace.rows[i].Session, trace.rows[i].Think = traceformat.Some(int64(i/5)), traceformat.Some(time.Millisecond)
	}
	poisson, err := ParseArrival("poisson", "20")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []func(*Options){
		func(o *Options) { o.Loop = 3 },
		func(o *Options) { o.ScaleRate = 2.5 },
		func(o *Options) { o.Arrival = poisson },
		func(o *Options) { o.Sessions, o.Loop = SessionsThink, 2 },
	} {
		rows := int64(0)
		var all []int64
		for i := range 3 {
			options := Defaults()
			o(&options)
			options.Shard = Shard{i, 3}
			p, err := NewPlan(trace.source(), options, Target{})
			if err != nil {
				t.Fatal(err)
			}
			rows += p.Rows
			all = append(all, p.All)
		}
		if !slices.Equal(all, []int64{rows, rows, rows}) || rows < 100 {
			t.Errorf("the shards send %d requests and know of %v", rows, all)
		}
	}
}
