package report

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/traceformat"
)

// A run is one side of a comparison as it is read.
type run struct {
	name     string
	path     string    // where it is read
	manifest *Manifest // nil of a capture
	conf     metrics.Config
	read     []traceformat.ReadOption
	lacks    string // traceformat.Lacks of the header, known once rows were read
}

func openRun(name string, c Config) (*run, error) {
	r := &run{name: name, path: name, read: c.Read}
	if c.Local != nil {
		r.path = c.Local(name)
	}
	if info, err := os.Stat(r.path); err == nil && info.IsDir() && isRun(r.path) {
		m, err := ReadManifest(r.path)
		if err != nil {
			return nil, err
		}
		r.manifest, r.conf = m, m.played()
	}
	if c.SLOs != nil {
		r.conf.SLOs = c.SLOs
	}
	return r, nil
}

// lackOf says what the source of a trace that was imported does not hold, a
// clause each.
func lackOf(lacks string) []string {
	if lacks == "" {
		return nil
	}
	return strings.Split(lacks, "; ")
}

// rows visits every row.
func (r *run) rows(ctx context.Context, visit func(row *traceformat.Row), opts ...traceformat.ReadOption) error {
	rd, err := traceformat.Open(r.path, append(slices.Clone(r.read), opts...)...)
	if err != nil {
		return err
	}
	defer rd.Close()
	r.lacks = rd.Header().Extra[traceformat.Lacks]
	n := 0
	for row, err := range rd.All() {
		if n++; err == nil && n%checkEvery == 0 {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		visit(row)
	}
	return nil
}

// pairKey names a request in both runs.
type pairKey struct {
	id  int64
	lap int32
}

// An entry says which row a request of A is.
type entry struct {
	pairKey
	row int32
}

func (e entry) compare(k pairKey) int {
	return cmp.Or(cmp.Compare(e.id, k.id), cmp.Compare(e.lap, k.lap))
}

// asked is what is kept of a row of A until its partner in B comes by. A million
// of them are held, so that it is small: see BenchmarkCompare.
type asked struct {
	digest                 int64
	zero                   time.Duration
	figures                figures
	prompt, output, cached int32 // served, or recorded; -1 unknown
	turn                   int32
	client                 int32
	class                  metrics.Class
	piece                  int8
	flags                  uint8
}

const (
	askedDigest = 1 << iota
	askedPaired
	askedMeasured
)

// A pair is one request with both of its outcomes.
type pair struct {
	key                    pairKey
	a, b                   figures
	zero                   time.Duration // in A
	prompt, output, cached int32         // of A, -1 unknown
	turn, client           int32
	piece                  int8
}

// figures are the latencies of one outcome, in ns; NaN where it has none. From
// the schedule, but for TPOT. Seven digits are enough to compare by.
type figures struct {
	ttft, e2e, tpot float32
	good            bool // met every SLO
}

// Work says whether both sides did the same.
type Work struct {
	Rows    [2]int64 `json:"rows"`   // measured, of A and B
	Joined  int64    `json:"joined"` // requests that both have
	OnlyA   int64    `json:"only_a"`
	OnlyB   int64    `json:"only_b"`
	BothOK  int64    `json:"both_ok"`
	FailedA int64    `json:"failed_in_a_only"`
	FailedB int64    `json:"failed_in_b_only"`
	// Of the joined ones, those whose prompt, or what the server counted, differs.
	Prompts      int64 `json:"prompts_differ"`
	Unverified   int64 `json:"prompts_unverified"` // without a digest on either side
	PromptTokens int64 `json:"prompt_tokens_differ"`
	OutputTokens int64 `json:"output_tokens_differ"`
	CachedTokens int64 `json:"cached_tokens_differ"`
	// Excluded were left out of the comparison for one of the first three.
	Excluded int64     `json:"excluded"`
	Examples []Unequal `json:"examples,omitempty"`
}

// An Unequal is a request that was not the same work.
type Unequal struct {
	ID   int64    `json:"id"`
	Lap  int32    `json:"lap,omitempty"`
	What string   `json:"what"` // prompt, prompt_tokens, output_tokens
	Was  [2]int32 `json:"was"`
}

// maxExamples bounds Work.Examples.
const maxExamples = 10

// duel is a pair of runs, request by request.
type duel struct {
	pairs   []pair // of requests that succeeded on both sides
	clients []string
	work    Work
	sums    [2]*metrics.Summary
	// of all joined requests, 0 or 1: what failed, what missed an SLO
	failed, missed [2][]int8
	piece          []int8
	// event gaps divided by tokens, by piece
	itl  [2][stats.Pieces][]float64
	sumI [2][stats.Pieces]float64
}

// itlEdges are 1 % apart, from 1 µs to an hour.
var itlEdges = func() (edges []float64) {
	for x := 1e3; x < 3.6e12; x *= 1.01 {
		edges = append(edges, x)
	}
	return append(edges, math.Inf(1))
}()

// binTable is the bin of the beginning of each cell: of the numbers that share
// exponent and the first eight bits of the mantissa, which is a logarithm at the
// price of a shift. Cells are narrower than bins: one holds one edge at most.
var binTable = func() (table []uint16) {
	k := 0
	for cell := range cellOf(itlEdges[len(itlEdges)-2]) + 2 {
		for itlEdges[k] < math.Float64frombits((uint64(cell)+firstCell)<<44) {
			k++
		}
		table = append(table, uint16(k))
	}
	return table
}()

// firstCell is the cell of 512 ns, which lies below all edges.
var firstCell = math.Float64bits(512) >> 44

func cellOf(ns float64) int { return int(math.Float64bits(ns)>>44 - firstCell) }

// bin is where itlEdges hold a gap: bin k holds what lies above edge k-1 and up
// to edge k.
func bin(ns float64) int {
	if !(ns > 1e3) {
		return 0
	}
	cell := cellOf(ns)
	if cell >= len(binTable) {
		return len(itlEdges) - 1
	}
	k := int(binTable[cell])
	if ns > itlEdges[k] {
		k++
	}
	return k
}

// readDuel reads both runs, for profilers as well where there are some.
func readDuel(ctx context.Context, a, b *run, exclude bool, profilers [2]*profiler) (*duel, error) {
	j := &duel{}
	for side := range j.itl {
		for i := range j.itl[side] {
			j.itl[side][i] = make([]float64, len(itlEdges))
		}
	}
	n := 0
	if err := a.rows(ctx, func(*traceformat.Row) { n++ }, traceformat.Columns("id")); err != nil {
		return nil, err
	}
	index := make([]entry, 0, n)
	first := make([]asked, 0, n)
	j.pairs = make([]pair, 0, n)
	j.piece = make([]int8, 0, n)
	for side := range 2 {
		j.failed[side], j.missed[side] = make([]int8, 0, n), make([]int8, 0, n)
	}
	sessions := map[pairKey]int8{} // where each began, by lap: a session stays whole
	clients := map[string]int32{}
	col := metrics.NewCollector(a.conf)
	i := 0
	err := a.rows(ctx, func(row *traceformat.Row) {
		col.Add(row)
		m := metrics.Measure(row)
		if profilers[0] != nil {
			profilers[0].add(row, &m)
		}
		p := stats.Piece(i, n)
		i++
		if id, ok := row.Session.Get(); ok {
			s := pairKey{id, row.Lap}
			if began, known := sessions[s]; known {
				p = began
			} else {
				sessions[s] = p
			}
		}
		client, ok := clients[row.Client]
		if !ok {
			client = int32(len(clients))
			clients[row.Client] = client
			j.clients = append(j.clients, row.Client)
		}
		x := asked{
			digest: row.PromptDigest.V, zero: m.Zero, figures: figuresOf(&m, a.conf.SLOs),
			prompt: m.PromptTokens.Or(-1), output: m.OutputTokens.Or(-1), cached: cachedTokens(row),
			turn: row.Turn.Or(-1), client: client, class: m.Class, piece: p,
		}
		if row.PromptDigest.OK {
			x.flags |= askedDigest
		}
		if measured(&a.conf, m.Zero) {
			x.flags |= askedMeasured
			j.work.Rows[0]++
			j.gaps(0, p, row, m.Class)
		}
		index = append(index, entry{pairKey{row.ID, row.Lap}, int32(len(first))})
		first = append(first, x)
	})
	if err != nil {
		return nil, err
	}
	j.sums[0] = col.Summary() // now, as what it is made from takes as much as all pairs
	col = metrics.NewCollector(b.conf)
	slices.SortFunc(index, func(x, y entry) int { return x.compare(y.pairKey) })
	err = b.rows(ctx, func(row *traceformat.Row) {
		col.Add(row)
		m := metrics.Measure(row)
		if profilers[1] != nil {
			profilers[1].add(row, &m)
		}
		in := measured(&b.conf, m.Zero)
		if in {
			j.work.Rows[1]++
		}
		at, ok := slices.BinarySearchFunc(index, pairKey{row.ID, row.Lap}, entry.compare)
		if !ok {
			if in {
				j.work.OnlyB++
			}
			return
		}
		x := &first[index[at].row]
		x.flags |= askedPaired
		if !in || x.flags&askedMeasured == 0 {
			return
		}
		j.gaps(1, x.piece, row, m.Class)
		j.meet(x, row, &m, a.conf.SLOs, exclude)
	})
	if err != nil {
		return nil, err
	}
	for i := range first {
		if f := first[i].flags; f&askedMeasured != 0 && f&askedPaired == 0 {
			j.work.OnlyA++
		}
	}
	j.sums[1] = col.Summary()
	for side, r := range []*run{a, b} {
		if r.manifest != nil {
			hold(&j.sums[side].Fidelity, r.manifest.Summary)
		}
	}
	return j, nil
}

func measured(c *metrics.Config, zero time.Duration) bool {
	return zero >= c.From && (c.To == 0 || zero <= c.To)
}

// cachedTokens are those of the run, or of the capture; -1 unknown.
func cachedTokens(row *traceformat.Row) int32 {
	if row.Scheduled.OK {
		return row.ServedCachedTokens.Or(-1)
	}
	return row.CachedTokens.Or(-1)
}

// gaps adds the time per token between the events of a success.
func (j *duel) gaps(side int, piece int8, row *traceformat.Row, class metrics.Class) {
	if class != metrics.OK {
		return
	}
	metrics.TokenGaps(row, func(gap time.Duration, tokens int64) {
		each := float64(gap) / float64(tokens)
		j.itl[side][piece][bin(each)] += float64(tokens)
		j.sumI[side][piece] += float64(gap)
	})
}

// meet joins a row of B with its partner.
func (j *duel) meet(x *asked, row *traceformat.Row, m *metrics.Reading, slos []metrics.SLO, exclude bool) {
	w := &j.work
	w.Joined++
	okA, okB := x.class == metrics.OK, m.Class == metrics.OK
	fb := figuresOf(m, slos)
	j.piece = append(j.piece, x.piece)
	j.failed[0], j.failed[1] = append(j.failed[0], failure(x.class)), append(j.failed[1], failure(m.Class))
	j.missed[0], j.missed[1] = append(j.missed[0], indicator(!x.figures.good)), append(j.missed[1], indicator(!fb.good))
	switch {
	case okA && !okB:
		w.FailedB++
	case okB && !okA:
		w.FailedA++
	}
	if !okA || !okB {
		return
	}
	w.BothOK++
	unequal := false
	differ := func(count *int64, what string, a, b int32) {
		*count++
		unequal = true
		if len(w.Examples) < maxExamples {
			w.Examples = append(w.Examples, Unequal{row.ID, row.Lap, what, [2]int32{a, b}})
		}
	}
	prompt, output := m.PromptTokens.Or(-1), m.OutputTokens.Or(-1)
	switch {
	case x.flags&askedDigest == 0 || !row.PromptDigest.OK:
		w.Unverified++
	case x.digest != row.PromptDigest.V:
		differ(&w.Prompts, "prompt", x.prompt, prompt)
	}
	if x.prompt != prompt && x.prompt >= 0 && prompt >= 0 {
		differ(&w.PromptTokens, "prompt_tokens", x.prompt, prompt)
	}
	if x.output != output && x.output >= 0 && output >= 0 {
		differ(&w.OutputTokens, "output_tokens", x.output, output)
	}
	if c := cachedTokens(row); c != x.cached && c >= 0 && x.cached >= 0 {
		w.CachedTokens++ // the same work all the same: how much was saved is the server's
	}
	if unequal && exclude {
		w.Excluded++
		return
	}
	j.pairs = append(j.pairs, pair{
		key: pairKey{row.ID, row.Lap}, a: x.figures, b: fb, zero: x.zero, prompt: x.prompt, output: x.output, cached: x.cached,
		turn: x.turn, client: x.client, piece: x.piece,
	})
}

// failure is 1 for a request that failed or was shed, and 0 for any other: one
// whose user hung up has not failed.
func failure(c metrics.Class) int8 {
	return indicator(c == metrics.Failed || c == metrics.Shed)
}

func indicator(b bool) int8 {
	if b {
		return 1
	}
	return 0
}

func figuresOf(m *metrics.Reading, slos []metrics.SLO) figures {
	nan := float32(math.NaN())
	f := figures{ttft: nan, e2e: nan, tpot: nan, good: m.Class == metrics.OK}
	if d, ok := m.FromSchedule(m.TTFT).Get(); ok {
		f.ttft = float32(d)
	}
	if d, ok := m.FromSchedule(m.E2E).Get(); ok {
		f.e2e = float32(d)
	}
	if d, ok := m.TPOT.Get(); ok {
		f.tpot = float32(d)
	}
	for _, slo := range slos {
		f.good = f.good && m.Meets(slo)
	}
	return f
}
