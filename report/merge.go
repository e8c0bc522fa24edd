package report

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reprise/gpu/findings"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// Joined says what a run was joined from.
type Joined struct {
	// Zero is the wall clock that the times of the run count from: the common
	// start where one was given, else when the first shard began.
	Zero    time.Time `json:"zero"`
	StartAt bool      `json:"zero_is_start_at"`
	// OffsetMax bounds the offsets of the shards: no zero lies further from
	// Zero, by the clock of its own machine.
	OffsetMax time.Duration `json:"offset_ns_max"`
	// ClockError bounds how far the clocks of the shards' machines were from each
	// other's; null where one of them was compared with nothing.
	ClockError *time.Duration `json:"clock_error_ns,omitempty"`
	Of         int            `json:"of"`
	Missing    []int          `json:"missing,omitempty"`
	// MissingRequests is what the missing shards would have sent.
	MissingRequests int64   `json:"requests_missing,omitempty"`
	Shards          []Shard `json:"shards"`
}

// A Shard is one part of a joined run, in its own words but for Rows, Offset
// and Fidelity.
type Shard struct {
	Index     int              `json:"index"`
	Dir       string           `json:"dir"` // without its folder
	State     string           `json:"state"`
	Reason    string           `json:"reason,omitempty"`
	StartedAt time.Time        `json:"started_at"`
	Offset    time.Duration    `json:"offset_ns"` // of its zero from the run's
	Rows      int64            `json:"rows"`
	Planned   int64            `json:"requests"`
	Fidelity  metrics.Fidelity `json:"fidelity"` // of its rows alone, from its own zero
	Program   Program          `json:"program"`
	Args      []string         `json:"args"`
	Server    Server           `json:"server"`
	Cache     json.RawMessage  `json:"cache,omitempty"`
	Host      json.RawMessage  `json:"host,omitempty"`
	Stats     *Stats           `json:"stats,omitempty"`
	Warnings  []string         `json:"warnings,omitempty"`
}

// A MergeConfig says what Merge joins, and where to.
type MergeConfig struct {
	Shards  []string // directories
	Out     string   // directory of the whole
	Force   bool     // replace the run that is in Out
	Partial bool     // go without the shards that are not there
	Program Program  // for the new run.json
	Args    []string
}

// Merge joins the shards of one run: it writes trace.parquet, latency.hlog,
// telemetry.parquet where the shards watched their server, and run.json to c.Out and returns the last. See the package comment for what it
// does and refuses; a refusal is a [*MergeError] and leaves c.Out as it was.
//
// Rows are sorted on disk beside c.Out, so that memory grows by the 80 bytes of
// a row that exact percentiles and the search for duplicates take.
func Merge(ctx context.Context, c MergeConfig) (*Manifest, error) {
	if len(c.Shards) == 0 {
		return nil, errors.New("nothing to merge")
	}
	shards, err := loadShards(c.Shards)
	if err != nil {
		return nil, err
	}
	if err := agree(shards); err != nil {
		return nil, err
	}
	missing, err := complete(shards, c.Partial)
	if err != nil {
		return nil, err
	}
	zero, err := align(shards)
	if err != nil {
		return nil, err
	}
	if err := checkOut(c, shards); err != nil {
		return nil, err
	}
	out := filepath.Clean(c.Out)
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(filepath.Dir(out), ".report-merge-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	m, err := join(ctx, c, shards, missing, zero, temp)
	if err != nil {
		return nil, err
	}
	return m, place(temp, out)
}

// runFiles are what a run directory may hold of a run.
var runFiles = []string{manifestFile, traceformat.RunTrace, latencyFile, telemetryFile,
	traceformat.JournalPath(traceformat.RunTrace), traceformat.JournalPath(telemetryFile)}

// checkOut refuses to write over a run, unless asked to, and over a shard.
func checkOut(c MergeConfig, shards []*shard) error {
	out, err := os.Stat(c.Out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, s := range shards {
		if info, err := os.Stat(s.dir); err == nil && os.SameFile(info, out) {
			return &MergeError{Reason: fmt.Sprintf("%s is one of the shards", c.Out), Hint: "name another directory with -o"}
		}
	}
	for _, name := range runFiles {
		if _, err := os.Lstat(filepath.Join(c.Out, name)); err == nil && !c.Force {
			return &MergeError{Reason: c.Out + " holds a run already", Hint: "name another directory with -o, or replace it with --force"}
		}
	}
	return nil
}

// place moves a finished run to its directory. While it is at it, that holds no
// run.json, so that nobody takes files of two runs for one.
func place(temp, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, name := range runFiles {
		if err := os.Remove(filepath.Join(out, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, name := range []string{traceformat.RunTrace, latencyFile, telemetryFile, manifestFile} {
		err := os.Rename(filepath.Join(temp, name), filepath.Join(out, name))
		if err != nil && !(name == telemetryFile && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// join writes the run to dir.
func join(ctx context.Context, c MergeConfig, shards []*shard, missing []int, zero time.Time, dir string) (*Manifest, error) {
	in := &input{ctx: ctx, shards: shards}
	sorted, err := traceformat.Sorted(in, dir)
	if err != nil {
		return nil, err
	}
	defer sorted.Close()
	if err := in.distinct(); err != nil {
		return nil, err
	}
	m := joined(c, shards, missing, zero)

	h := in.header.Clone()
	h.Start, h.Rows, h.Partial = zero, traceformat.Counts{}, m.Reason
	w, err := traceformat.Create(filepath.Join(dir, traceformat.RunTrace), h, traceformat.RequireSorted())
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	log, err := metrics.CreateLatencyLog(filepath.Join(dir, latencyFile), zero)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	byEnd := &ends{log: log}
	conf := shards[0].m.config()
	for _, s := range shards {
		if s.m.Summary != nil { // of one that was not killed
			conf = s.m.config()
			break
		}
	}
	conf.Planned, conf.To = m.Plan.Rows, m.Plan.Span
	col, requests := metrics.NewCollector(conf), findings.NewRequests()
	second, n := int64(-1), int64(0)
	for row, err := range sorted.All() {
		if err == nil {
			err = errors.Join(w.Write(row), byEnd.add(row))
		}
		if err == nil && w.Rows()%checkEvery == 0 {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		col.Add(row)
		requests.Add(row)
		if s := int64(row.Arrival / time.Second); s != second {
			second, n = s, 0
		}
		n++
		m.Plan.PeakRate = max(m.Plan.PeakRate, n)
	}
	if err := errors.Join(byEnd.finish(), log.Close(), w.Close()); err != nil {
		return nil, err
	}

	m.Summary = col.Summary()
	m.Stats.Peak = m.Summary.InFlight.Peak
	judge(m, shards)
	if err := watch(m, shards, requests, dir); err != nil {
		return nil, err
	}
	for _, s := range shards {
		m.Merge.Shards = append(m.Merge.Shards, s.record())
	}
	return m, m.write(filepath.Join(dir, manifestFile))
}

// joined makes the manifest of the whole, but for what its rows say together.
func joined(c MergeConfig, shards []*shard, missing []int, zero time.Time) *Manifest {
	first := shards[0]
	m := &Manifest{
		Version: manifestVersion, State: StateComplete, Program: c.Program, Args: c.Args,
		Options: wholeOptions(first.m.Options), Trace: first.m.Trace, Plan: first.m.Plan, Server: first.m.Server,
		Stats: &Stats{StartedAt: zero},
		Merge: &Joined{Zero: zero, StartAt: !first.startAt.IsZero(), Of: first.of, Missing: missing},
	}
	m.Merge.ClockError = clockError(shards)
	p, st := &m.Plan, m.Stats
	p.PromptTokens, p.OutputTokens, p.PeakRate, p.Connections, p.Rows = 0, 0, 0, 0, p.All
	m.Server.Wire = nil
	planned := int64(0)
	var reasons, clients, urls []string
	for _, s := range shards {
		p.PromptTokens += s.m.Plan.PromptTokens
		p.OutputTokens += s.m.Plan.OutputTokens
		p.Connections += s.m.Plan.Connections
		p.Span = max(p.Span, s.m.Plan.Span)
		planned += s.m.Plan.Rows
		m.Merge.OffsetMax = max(m.Merge.OffsetMax, s.offset, -s.offset)

		st.Sent += s.sent
		st.Shed += s.shed
		if t := s.m.Stats; t != nil {
			st.Retries += t.Retries
			st.Elapsed = max(st.Elapsed, s.offset+t.Elapsed)
			st.Interrupted = st.Interrupted || t.Interrupted
			if t.WarmError != "" && st.WarmError == "" {
				st.WarmError = fmt.Sprintf("%s: %s", s.name(), t.WarmError)
			}
		}
		if ws := s.m.Server.Wire; ws != nil {
			if m.Server.Wire == nil {
				m.Server.Wire = new(wire.Stats)
			}
			sum := m.Server.Wire
			sum.Dialed, sum.Reopened = sum.Dialed+ws.Dialed, sum.Reopened+ws.Reopened
			sum.Stale, sum.Resent = sum.Stale+ws.Stale, sum.Resent+ws.Resent
		}
		clients, urls = append(clients, s.m.Server.Client), append(urls, s.m.Server.URL)
		if s.killed {
			reasons = append(reasons, s.name()+" was killed")
		} else if s.m.State != StateComplete {
			reasons = append(reasons, fmt.Sprintf("%s is partial: %s", s.name(), cmp.Or(s.m.Reason, "interrupted")))
		}
		for _, w := range s.m.Warnings {
			m.Warnings = append(m.Warnings, s.name()+": "+w)
		}
	}
	st.Unsent = p.Rows - st.Sent - st.Shed
	if len(shards) < first.of {
		m.Merge.MissingRequests = p.All - planned
		reasons = append([]string{fmt.Sprintf("%d of %d shards are missing, and %d requests with them", first.of-len(shards), first.of, p.All-planned)}, reasons...)
		st.Interrupted = true
	}
	if len(reasons) > 0 {
		m.State, m.Reason = StatePartial, strings.Join(reasons, "; ")
	}

	slices.Sort(clients)
	m.Server.Client = strings.Join(slices.Compact(clients), ", ")
	slices.Sort(urls)
	switch urls = slices.Compact(urls); {
	case len(urls) > 1:
		m.Server.URL = ""
		m.Warnings = append(m.Warnings, "the shards name different servers: "+strings.Join(urls, ", "))
	case urls[0] == "" && len(shards) > 1:
		m.Warnings = append(m.Warnings, "each shard played against an embedded engine of its own, which saw a part of the load")
	}
	return m
}

// wholeOptions are those of a shard for the run that it is part of.
func wholeOptions(options json.RawMessage) json.RawMessage {
	var o map[string]json.RawMessage
	if err := json.Unmarshal(options, &o); err != nil {
		return options
	}
	o["shard"] = json.RawMessage(`{"index": 0, "of": 0}`)
	b, err := json.Marshal(o)
	if err != nil {
		return options
	}
	return b
}

// clockError is the sum of the two largest errors of the shards' clocks, if all
// were compared with one reference.
func clockError(shards []*shard) *time.Duration {
	var bounds []time.Duration
	for _, s := range shards {
		if s.m.Stats == nil || s.m.Stats.Clock == nil || s.m.Stats.Clock.Reference != shards[0].m.Stats.Clock.Reference {
			return nil
		}
		bounds = append(bounds, s.m.Stats.Clock.Bound)
	}
	slices.Sort(bounds)
	apart := bounds[len(bounds)-1]
	if len(bounds) > 1 {
		apart += bounds[len(bounds)-2]
	}
	return &apart
}

// judge adds to what the rows say together what they say of each shard.
func judge(m *Manifest, shards []*shard) {
	f := &m.Summary.Fidelity
	for _, s := range shards {
		if s.offset > f.SendErrorLimit || -s.offset > f.SendErrorLimit {
			object(f, fmt.Sprintf("%s began %s from the run's zero: play all shards with one --start-at", s.name(), units.Duration(s.offset)))
		}
		if s.fidelity.Verdict != metrics.Invalid {
			continue
		}
		for _, r := range s.fidelity.Reasons {
			object(f, s.name()+": "+r)
		}
		if f.Bottleneck == "" {
			f.Bottleneck = s.fidelity.Bottleneck
		}
	}
}

func (s *shard) record() Shard {
	r := Shard{
		Index: s.index, Dir: filepath.Base(s.dir), State: s.m.State, Reason: s.m.Reason, StartedAt: s.zero, Offset: s.offset,
		Rows: s.rows, Planned: s.m.Plan.Rows, Fidelity: s.fidelity, Program: s.m.Program, Args: s.m.Args, Server: s.m.Server,
		Cache: s.m.Cache, Host: s.m.Host, Stats: s.m.Stats, Warnings: s.m.Warnings,
	}
	if s.killed {
		r.State, r.Reason = StatePartial, "killed"
	}
	return r
}

// An input reads the rows of one shard after the other, so that one file is
// open at a time, and puts them on one axis.
type input struct {
	ctx    context.Context
	shards []*shard
	header *traceformat.Header
	keys   []key
}

// A key names a request, and which shard has it.
type key struct {
	id    int64
	lap   int32
	shard int32
}

// Header is that of the first trace; it is known once All has begun.
func (in *input) Header() *traceformat.Header { return in.header }

func (in *input) Close() error { return nil }

func (in *input) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for i, s := range in.shards {
			more, err := in.read(int32(i), s, yield)
			if err != nil {
				yield(nil, err)
				return
			}
			if !more {
				return
			}
		}
	}
}

// read yields the rows of shard s. more is false where the reader of all has
// enough.
func (in *input) read(i int32, s *shard, yield func(*traceformat.Row, error) bool) (more bool, err error) {
	path := filepath.Join(s.dir, traceformat.RunTrace)
	if _, err := os.Stat(path); err != nil {
		path = s.dir // whose error says what is there in its place
	}
	r, err := traceformat.Open(path, traceformat.WithFormat(traceformat.NativeFormat))
	if err != nil {
		return false, err
	}
	defer r.Close()
	if in.header == nil {
		in.header = r.Header()
	}
	conf := s.m.config()
	if s.m.Summary == nil && in.shards[0].m.Summary != nil {
		conf.Limits = in.shards[0].m.config().Limits
	}
	col := metrics.NewCollector(conf)
	for row, err := range r.All() {
		if err == nil && len(in.keys)%checkEvery == 0 {
			err = in.ctx.Err()
		}
		if err == nil && !row.Scheduled.OK {
			err = fmt.Errorf("%s: row %d (id %d): it has no scheduled_ns, so that nobody replayed it", path, s.rows, row.ID)
		}
		if err != nil {
			return false, err
		}
		in.keys = append(in.keys, key{row.ID, row.Lap, i})
		s.rows++
		if row.Result == traceformat.ResultShed {
			s.shed++
		} else {
			s.sent++
		}
		col.Add(row)
		move(row, s.offset)
		if !yield(row, nil) {
			return false, nil
		}
	}
	switch t := s.m.Stats; {
	case s.rows > s.m.Plan.Rows:
		return false, &MergeError{Reason: fmt.Sprintf("%s: holds %d rows, and %d requests were planned", path, s.rows, s.m.Plan.Rows)}
	case s.m.State == StateComplete && (t == nil || s.sent != t.Sent || s.shed != t.Shed):
		return false, &MergeError{
			Reason: fmt.Sprintf("%s: holds %d requests sent and %d shed, which is not what run.json says", path, s.sent, s.shed),
			Hint:   "is the copy whole? files of two runs in one directory look like this too",
		}
	}
	s.fidelity = col.Summary().Fidelity
	if s.m.Plan.Rows == 0 {
		// Nothing of the run fell to it, which is no fault of its.
		s.fidelity = metrics.Fidelity{Valid: true, Verdict: metrics.Valid, Limits: s.fidelity.Limits}
		return true, nil
	}
	hold(&s.fidelity, s.m.Summary)
	return true, nil
}

// move puts what happened to a request on another axis. The schedule stays.
func move(r *traceformat.Row, by time.Duration) {
	for _, t := range []*traceformat.Opt[time.Duration]{&r.Wake, &r.Conn, &r.Sent, &r.Headers, &r.FirstEvent, &r.Close} {
		if t.OK {
			t.V += by
		}
	}
}

// distinct checks that no request is there twice.
func (in *input) distinct() error {
	slices.SortFunc(in.keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.lap, b.lap), cmp.Compare(a.shard, b.shard))
	})
	for i := 1; i < len(in.keys); i++ {
		a, b := in.keys[i-1], in.keys[i]
		if a.id == b.id && a.lap == b.lap {
			where := "twice in " + in.shards[a.shard].dir
			if a.shard != b.shard {
				where = fmt.Sprintf("in %s and in %s", in.shards[a.shard].dir, in.shards[b.shard].dir)
			}
			return &MergeError{
				Reason: fmt.Sprintf("request %d (lap %d) is %s", a.id, a.lap, where),
				Hint:   "a request is played by one shard: is each trace.parquet the one that its run.json speaks of?",
			}
		}
	}
	in.keys = nil
	return nil
}
