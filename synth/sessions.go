package synth

import (
	"container/heap"
	"errors"
	"fmt"
	"math"
	"slices"

	"reprise/synth/score"
)

// Sessions says how a conversation goes on after its first request.
type Sessions struct {
	Turns *Marginal `json:"turns"` // requests of a session
	// Think is the pause from an answer to the next request, Service the time
	// from a request to the end of its answer; where Think is unknown, Pause is
	// from request to request. Seconds.
	Think   *Marginal `json:"think_s,omitempty"`
	Service *Marginal `json:"service_s,omitempty"`
	Pause   *Marginal `json:"pause_s,omitempty"`
	// First is the prompt of the first request. Growth is how much longer the
	// next prompt is than the one before, by size of that: equal shares, short
	// first. Edges are the greatest lengths of each size but the last.
	First  *Marginal   `json:"first,omitempty"`
	Edges  []int       `json:"edges,omitempty"`
	Growth []*Marginal `json:"growth,omitempty"`
	// KeepAll is how often a prompt begins with all whole blocks of the one
	// before, Kept the share of these blocks that it begins with otherwise.
	KeepAll float64   `json:"keep_all,omitempty"`
	Kept    *Marginal `json:"kept,omitempty"`
}

const growthSizes = 4

func (f *Sessions) check() error {
	if f.Turns == nil || f.Think == nil && f.Pause == nil {
		return errors.New("want turns, and think_s or pause_s")
	}
	var errs []error
	marginal := func(name string, m *Marginal, min, max float64) {
		if m == nil {
			return
		}
		if err := m.check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		} else if m.Min < min || m.Max > max {
			errs = append(errs, fmt.Errorf("%s: %v to %v, want %v to %v", name, m.Min, m.Max, min, max))
		}
	}
	marginal("turns", f.Turns, 1, 1e6)
	marginal("think_s", f.Think, 0, maxHorizon)
	marginal("service_s", f.Service, 0, maxHorizon)
	marginal("pause_s", f.Pause, 0, maxHorizon)
	marginal("first", f.First, 0, maxTokens)
	marginal("kept", f.Kept, 0, 1)
	for _, g := range f.Growth {
		if g == nil {
			errs = append(errs, errors.New("growth: a size has none"))
		}
		marginal("growth", g, -maxTokens, maxTokens)
	}
	if f.Growth != nil && (len(f.Growth) != len(f.Edges)+1 || !slices.IsSorted(f.Edges) || f.First == nil) {
		errs = append(errs, errors.New("growth: want first, edges that rise and one entry more"))
	}
	if !share(f.KeepAll) {
		errs = append(errs, fmt.Errorf("keep_all is %v", f.KeepAll))
	}
	return errors.Join(errs...)
}

// turns is the mean number of requests of a session.
func (f *Sessions) turns() float64 { return f.Turns.quantiler().mean() }

// sessionRows groups the rows of a sample by session, in order; rows without a
// session are sessions of their own.
func sessionRows(s *score.Sample) [][]int {
	var ss [][]int
	at := map[int32]int{}
	for i, id := range s.Session {
		k, ok := at[id]
		if !ok || id < 0 {
			k = len(ss)
			ss = append(ss, nil)
			at[id] = k
		}
		ss[k] = append(ss[k], i)
	}
	return ss
}

// fitSessions learns how conversations go on. Turns of a session that was under
// way when the trace ended are counted as they are.
func fitSessions(s *score.Sample, groups [][]int, rule *blockRule) *Sessions {
	f := &Sessions{}
	var turns, first, before, after []int32
	var think, service, pause, kept []float64
	all, pairs := 0.0, 0.0
	for _, rows := range groups {
		turns = append(turns, int32(len(rows)))
		if s.In != nil && s.In[rows[0]] >= 0 {
			first = append(first, s.In[rows[0]])
		}
		for k, i := range rows {
			if s.Service != nil && s.Service[i] >= 0 {
				service = append(service, s.Service[i])
			}
			if k == 0 {
				continue
			}
			p := rows[k-1]
			pause = append(pause, max(0, s.Arrival[i]-s.Arrival[p]))
			if s.Think != nil && s.Think[i] >= 0 {
				think = append(think, s.Think[i])
			}
			if s.In != nil && s.In[i] >= 0 && s.In[p] >= 0 {
				before, after = append(before, s.In[p]), append(after, s.In[i])
			}
			if rule == nil {
				continue
			}
			prev, now := s.RowBlocks(p), s.RowBlocks(i)
			whole := len(prev)
			if s.In[p] >= 0 {
				_, w := rule.of(s.In[p])
				whole = min(whole, w)
			}
			same := 0
			for same < min(whole, len(now)) && prev[same] == now[same] {
				same++
			}
			if whole > 0 {
				pairs++
				if same == whole {
					all++
				} else {
					kept = append(kept, float64(same)/float64(whole))
				}
			}
		}
	}
	f.Turns = fitMarginal(turns)
	if len(think) > 0 && len(service) > 0 {
		f.Think, f.Service = fitContinuous(think, knots), fitContinuous(service, knots)
	} else {
		if len(pause) == 0 {
			pause = []float64{0} // all have one turn, as those of one client may: nobody draws it
		}
		f.Pause = fitContinuous(pause, knots)
	}
	if len(before) > 0 && len(first) > 0 {
		f.First = fitMarginal(first)
		sorted := slices.Clone(before)
		slices.Sort(sorted)
		for i := 1; i < growthSizes && len(before) >= 100; i++ {
			if e := int(sorted[i*len(sorted)/growthSizes]); e < int(sorted[len(sorted)-1]) && (len(f.Edges) == 0 || e > f.Edges[len(f.Edges)-1]) {
				f.Edges = append(f.Edges, e)
			}
		}
		grown := make([][]int32, len(f.Edges)+1)
		for i := range before {
			k := sizeIndex(f.Edges, before[i])
			grown[k] = append(grown[k], after[i]-before[i])
		}
		for _, g := range grown {
			f.Growth = append(f.Growth, fitMarginal(g))
		}
	}
	if pairs > 0 {
		f.KeepAll = rounded(all/pairs, 5)
		if len(kept) > 0 {
			f.Kept = fitContinuous(kept, 64)
		}
	}
	return f
}

func sizeIndex(edges []int, v int32) int {
	k, _ := slices.BinarySearch(edges, int(v))
	return k
}

// A conversation is a session under way.
type conversation struct {
	id    int64
	due   float64
	turn  int32
	left  int32 // turns after the next
	in    int32 // prompt of the turn before, -1 unknown
	think float64
	row   int64 // id of the turn before
	runs  []run
}

// conversations is a heap by due time; ties go to the older session.
type conversations []*conversation

func (c conversations) Len() int { return len(c) }
func (c conversations) Less(i, j int) bool {
	return c[i].due < c[j].due || c[i].due == c[j].due && c[i].id < c[j].id
}
func (c conversations) Swap(i, j int) { c[i], c[j] = c[j], c[i] }
func (c *conversations) Push(x any)   { *c = append(*c, x.(*conversation)) }
func (c *conversations) Pop() any {
	old := *c
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*c = old[:len(old)-1]
	return x
}

var _ heap.Interface = (*conversations)(nil)

// A talker draws how sessions go on.
type talker struct {
	f                            *Sessions
	s                            *stream
	turns, think, service, pause *quantiler
	first, kept                  *quantiler
	growth                       []*quantiler
	minIn, maxIn                 int32
	open                         conversations
	next                         int64
}

func newTalker(f *Sessions, l *Lengths, s *stream, base int64) *talker {
	d := &talker{f: f, s: s, turns: f.Turns.quantiler(), think: quantilerOf(f.Think), service: quantilerOf(f.Service),
		pause: quantilerOf(f.Pause), first: quantilerOf(f.First), kept: quantilerOf(f.Kept), maxIn: maxTokens, next: base}
	for _, g := range f.Growth {
		d.growth = append(d.growth, g.quantiler())
	}
	if l != nil && l.In != nil {
		d.minIn, d.maxIn = int32(l.In.Min), int32(l.In.Max)
	}
	return d
}

// start begins a session that arrives at t.
func (d *talker) start(t float64) *conversation {
	d.next++
	return &conversation{id: d.next - 1, due: t, left: max(1, d.turns.whole(d.s.uniform())) - 1, in: -1, think: -1}
}

// prompt is the length of the next prompt; ok is false where sessions say
// nothing about it.
func (d *talker) prompt(c *conversation) (tokens int32, ok bool) {
	switch {
	case d.growth == nil:
		return 0, false
	case c.turn == 0 || c.in < 0:
		tokens = d.first.whole(d.s.uniform())
	default:
		tokens = c.in + d.growth[sizeIndex(d.f.Edges, c.in)].whole(d.s.uniform())
	}
	return min(d.maxIn, max(d.minIn, tokens)), true
}

// goOn schedules the next turn, or says that there is none.
func (d *talker) goOn(c *conversation) bool {
	if c.left <= 0 {
		return false
	}
	c.left--
	c.turn++
	if d.think != nil {
		c.think = max(0, d.think.real(d.s.uniform()))
		service := 0.0
		if d.service != nil {
			service = d.service.real(d.s.uniform())
		}
		c.due += c.think + service
	} else {
		c.due += max(0, d.pause.real(d.s.uniform()))
	}
	return !math.IsInf(c.due, 1)
}

// share is how many of the whole blocks before come back.
func (d *talker) share(whole int) int {
	if d.kept == nil || d.s.uniform() < d.f.KeepAll {
		return whole
	}
	return int(math.Round(d.kept.real(d.s.uniform()) * float64(whole)))
}
