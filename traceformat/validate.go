package traceformat

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// A Violation is a rule of the format that a trace breaks.
type Violation struct {
	Row    int64  `json:"row"` // index from 0, or -1 where it concerns the file
	ID     int64  `json:"id"`
	Rule   string `json:"rule"`
	Detail string `json:"detail"`
	// Note marks what is no fault of the trace: a limit of the check itself,
	// or something worth knowing.
	Note bool `json:"note,omitempty"`
}

func (v Violation) String() string {
	if v.Row < 0 {
		return v.Rule + ": " + v.Detail
	}
	return fmt.Sprintf("row %d (id %d): %s: %s", v.Row, v.ID, v.Rule, v.Detail)
}

const (
	// maxIDBytes is what Validate spends on the ids it has seen. Dense ids
	// take a bit each, scattered ones about a hundred bytes.
	maxIDBytes = 256 << 20
	// maxSessions is how many sessions Validate follows at a time.
	maxSessions = 1 << 20
)

// Validate checks every rule of the format and yields all violations in file
// order, those of the header last, when all rows are counted. An error of the
// Reader is the violation "readable" and ends the sequence. Memory is bounded;
// where a trace needs more to be checked in full, a note says what was not.
func Validate(r Reader) iter.Seq[Violation] {
	return func(yield func(Violation) bool) {
		switch r := r.(type) { // they would stop at the first
		case *FileReader:
			r.lax = true
		case *dataset:
			r.lax = true
		}
		v := &validator{header: r.Header(), seen: idSet{limit: maxIDBytes}, turns: map[int64]int32{}}
		for row, err := range r.All() {
			if err != nil {
				v.add(-1, 0, "readable", "%v", err)
				if e, ok := errors.AsType[*RowError](err); ok {
					v.found[len(v.found)-1].Row = e.Row
				}
				v.flush(yield)
				return
			}
			v.check(row)
			if !v.flush(yield) {
				return
			}
			v.rows++
		}
		v.header = r.Header()
		v.end()
		v.flush(yield)
	}
}

type validator struct {
	header   *Header
	rows     int64
	last     [3]int64
	unsorted bool
	seen     idSet
	full     bool
	turns    map[int64]int32 // last turn of each session
	lost     bool            // turns was emptied
	found    []Violation
	id       int64
}

func (v *validator) add(row, id int64, rule, format string, args ...any) {
	v.found = append(v.found, Violation{Row: row, ID: id, Rule: rule, Detail: fmt.Sprintf(format, args...)})
}

func (v *validator) fault(rule, format string, args ...any) {
	v.add(v.rows, v.id, rule, format, args...)
}

func (v *validator) note(rule, format string, args ...any) {
	v.add(-1, 0, rule, format, args...)
	v.found[len(v.found)-1].Note = true
}

func (v *validator) flush(yield func(Violation) bool) bool {
	for _, f := range v.found {
		if !yield(f) {
			return false
		}
	}
	v.found = v.found[:0]
	return true
}

func (v *validator) check(r *Row) {
	v.id = r.ID
	if err := r.Check(); err != nil {
		v.fault("range", "%v", err)
	}
	v.order(r)
	v.identity(r)
	v.conversation(r)
	v.words(r)
	v.counts(r)
	v.blocks(r)
	v.times(r)
	v.chunks(r)
	v.replay(r)
}

func (v *validator) order(r *Row) {
	key := r.key()
	if v.rows > 0 && less(key, v.last) {
		if v.header.Sorted {
			v.fault("sorted", "(arrival_ns, id, lap) is %v after %v", key, v.last)
		} else if !v.unsorted {
			v.fault("sorted", "rows are not in the order of (arrival_ns, id, lap) from here on, as the header says")
		}
		v.unsorted = true
	}
	v.last = key
}

func (v *validator) identity(r *Row) {
	if v.full {
		return
	}
	fresh, ok := v.seen.add(r.ID, r.Lap)
	switch {
	case !ok:
		v.full = true
		v.note("unique", "ids are too many and too scattered to hold: from row %d on, repeated ids and parents were not looked for", v.rows)
		return
	case !fresh:
		v.fault("unique", "id %d with lap %d is there before", r.ID, r.Lap)
	}
	if r.OriginID.OK && r.Origin == "" {
		v.fault("origin", "origin_id without an origin")
	}
}

func (v *validator) conversation(r *Row) {
	if r.Parent.OK {
		switch {
		case r.Parent.V == r.ID:
			v.fault("parent", "a request cannot continue itself")
		case !v.full && !v.seen.has(r.Parent.V, r.Lap):
			v.fault("parent", "parent_id %d is no earlier row of this lap", r.Parent.V)
		}
		if r.Turn.OK && r.Turn.V == 0 {
			v.fault("turn", "turn 0 has a parent")
		}
	}
	if r.Turn.OK {
		if r.Turn.V < 0 {
			v.fault("turn", "turn is %d", r.Turn.V)
		}
		if r.Session.OK {
			v.turn(r)
		} else {
			v.fault("turn", "turn %d of no session", r.Turn.V)
		}
	}
	if r.Think.OK {
		if r.Think.V < 0 {
			v.fault("think", "think_ns is %d", int64(r.Think.V))
		}
		if r.Think.V > 0 && r.Turn.OK && r.Turn.V == 0 && !r.Parent.OK {
			v.fault("think", "the first turn of a session has nothing to think about")
		}
	}
	if r.Delay.OK && r.Delay.V < 0 {
		v.fault("delay", "delay_ns is %d", int64(r.Delay.V))
	}
}

// turn checks that the turns of a session rise.
func (v *validator) turn(r *Row) {
	if r.Lap > 0 {
		return // laps repeat sessions, and may overlap
	}
	if last, ok := v.turns[r.Session.V]; ok && r.Turn.V <= last {
		v.fault("turn", "turn %d of session %d comes after turn %d", r.Turn.V, r.Session.V, last)
	}
	if len(v.turns) >= maxSessions {
		clear(v.turns)
		if !v.lost {
			v.lost = true
			v.note("turn", "more than %d sessions: the order of turns was checked within stretches of the file", maxSessions)
		}
	}
	v.turns[r.Session.V] = r.Turn.V
}

var (
	tokenSources = []string{SourceUsage, SourceEngine, SourceTokenizer, SourceEvents, SourceBytes}
	endpoints    = []string{EndpointChat, EndpointCompletions, EndpointGenerate, EndpointMessages, EndpointResponses, EndpointEmbeddings}
	results      = []string{ResultOK, ResultClientAbort, ResultServerError, ResultTimeout, ResultRejected, ResultTruncated, ResultShed}
	ttftSources  = []string{TTFTContentEvent, TTFTEngine, TTFTGateway, TTFTFirstByte, TTFTHeader}
)

func (v *validator) words(r *Row) {
	for _, w := range []struct {
		column, value string
		known         []string
	}{
		{"endpoint", r.Endpoint, endpoints},
		{"prompt_tokens_source", r.PromptTokensSource, tokenSources},
		{"output_tokens_source", r.OutputTokensSource, tokenSources},
		{"ttft_source", r.TTFTSource, ttftSources},
		{"outcome", r.Result, results},
	} {
		if w.value != "" && !slices.Contains(w.known, w.value) {
			v.fault(w.column, "%q is none of %q", w.value, w.known)
		}
	}
	for _, s := range []string{r.Origin, r.Client, r.Model, r.Class, r.FinishReason, r.Error, r.Extra} {
		if !utf8.ValidString(s) {
			v.fault("utf8", "%.40q is not UTF-8", s)
		}
	}
	if r.Extra != "" {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal([]byte(r.Extra), &fields); err != nil {
			v.fault("extra", "is no JSON object: %v", err)
		}
	}
}

func (v *validator) counts(r *Row) {
	for _, c := range []struct {
		column string
		n      Opt[int32]
	}{
		{"reasoning_tokens", r.ReasoningTokens},
		{"media_tokens", r.MediaTokens},
		{"served_prompt_tokens", r.ServedPromptTokens},
		{"served_output_tokens", r.ServedOutputTokens},
		{"served_cached_tokens", r.ServedCachedTokens},
	} {
		if err := checkTokens(c.column, c.n); err != nil {
			v.fault("range", "%v", err)
		}
	}
	if r.N.OK && r.N.V < 1 {
		v.fault("range", "n is %d, want at least 1", r.N.V)
	}
	if t := r.Temperature; t.OK && (math.IsNaN(t.V) || math.IsInf(t.V, 0) || t.V < 0) {
		v.fault("range", "temperature is %v", t.V)
	}
	if s := r.Status; s.OK && (s.V < 100 || s.V > 599) {
		v.fault("range", "status is %d, want an HTTP status", s.V)
	}
	v.within("cached_tokens", r.CachedTokens, "prompt_tokens", r.PromptTokens)
	v.within("reasoning_tokens", r.ReasoningTokens, "output_tokens", r.OutputTokens)
	v.within("served_cached_tokens", r.ServedCachedTokens, "served_prompt_tokens", r.ServedPromptTokens)
	if r.PromptTokensSource != "" && !r.PromptTokens.OK {
		v.fault("prompt_tokens_source", "%q is the source of an unknown length", r.PromptTokensSource)
	}
	if r.OutputTokensSource != "" && !r.OutputTokens.OK {
		v.fault("output_tokens_source", "%q is the source of an unknown length", r.OutputTokensSource)
	}
}

func (v *validator) within(part string, p Opt[int32], whole string, w Opt[int32]) {
	if p.OK && w.OK && p.V > w.V {
		v.fault("range", "%s is %d of %s %d", part, p.V, whole, w.V)
	}
}

// blocks compares the number of block ids with the rule of the header.
func (v *validator) blocks(r *Row) {
	b := v.header.Blocks
	if r.PrefixBlocks == nil {
		return
	}
	if b.Size <= 0 {
		if len(r.PrefixBlocks) > 0 && v.rows == 0 {
			v.fault("blocks", "there are block ids and the header has no block size")
		}
		return
	}
	later := r.Turn.OK && r.Turn.V > 0
	if b.Of != "" || !r.PromptTokens.OK || later && v.header.Lengths != LengthsCumulative {
		return // ids are of the whole prompt, the length need not be
	}
	least := int64(r.PromptTokens.V) / int64(b.Size)
	most := (int64(r.PromptTokens.V) + int64(b.Size) - 1) / int64(b.Size)
	switch b.Partial {
	case PartialKept, PartialPadded:
		least = most
	case PartialDropped:
		most = least
	}
	if n := int64(len(r.PrefixBlocks)); n < least || n > most {
		want := fmt.Sprint(least)
		if least != most {
			want = fmt.Sprintf("%d or %d", least, most)
		}
		v.fault("blocks", "%d block ids for %d tokens in blocks of %d (partial %q), want %s", n, r.PromptTokens.V, b.Size, b.Partial, want)
	}
}

func (v *validator) times(r *Row) {
	for _, t := range []struct {
		column string
		d      Opt[time.Duration]
	}{
		{"ttft_ns", r.TTFT}, {"e2e_ns", r.E2E}, {"abort_ns", r.Abort},
		{"server_queue_ns", r.ServerQueue}, {"server_prefill_ns", r.ServerPrefill}, {"server_ttft_ns", r.ServerTTFT}, {"server_e2e_ns", r.ServerE2E},
	} {
		if t.d.OK && (t.d.V < 0 || t.d.V > maxArrival) {
			v.fault("range", "%s is %d", t.column, int64(t.d.V))
		}
	}
	v.before("ttft_ns", r.TTFT, "e2e_ns", r.E2E)
	v.before("server_ttft_ns", r.ServerTTFT, "server_e2e_ns", r.ServerE2E)
	if r.TTFTSource != "" && !r.TTFT.OK {
		v.fault("ttft_source", "%q is the source of an unknown time", r.TTFTSource)
	}
}

func (v *validator) before(first string, a Opt[time.Duration], then string, b Opt[time.Duration]) {
	if a.OK && b.OK && a.V > b.V {
		v.fault("times", "%s %d is after %s %d", first, int64(a.V), then, int64(b.V))
	}
}

func (v *validator) chunks(r *Row) {
	// Times without tokens are events whose tokens only a total tells.
	if r.ChunkTimes == nil && r.ChunkTokens != nil {
		v.fault("chunks", "chunk_tokens without chunk_ns")
	}
	for i, t := range r.ChunkTimes {
		if t < 0 || i > 0 && t < r.ChunkTimes[i-1] {
			v.fault("chunks", "chunk %d is at %d ns, before the one before", i, int64(t))
			break
		}
	}
	if i := slices.IndexFunc(r.ChunkTokens, func(n int32) bool { return n < 0 || n > maxTokens }); i >= 0 {
		v.fault("chunks", "chunk %d has %d tokens", i, r.ChunkTokens[i])
	}
	if n := len(r.ChunkTimes); n > 0 {
		v.before("the last chunk", Some(r.ChunkTimes[n-1]), "e2e_ns", r.E2E)
	}
}

// replay checks the clocks of a replayed request.
func (v *validator) replay(r *Row) {
	if r.Scheduled.OK && r.Scheduled.V != r.Arrival {
		v.fault("replay", "scheduled_ns %d differs from arrival_ns %d", int64(r.Scheduled.V), int64(r.Arrival))
	}
	for _, t := range []struct {
		column string
		d      Opt[time.Duration]
	}{
		{"scheduled_ns", r.Scheduled}, {"wake_ns", r.Wake}, {"conn_ns", r.Conn}, {"sent_ns", r.Sent},
		{"headers_ns", r.Headers}, {"first_event_ns", r.FirstEvent}, {"close_ns", r.Close},
	} {
		if t.d.OK && (t.d.V < 0 || t.d.V > maxArrival) {
			v.fault("range", "%s is %d", t.column, int64(t.d.V))
		}
	}
	v.before("conn_ns", r.Conn, "sent_ns", r.Sent)
	v.before("sent_ns", r.Sent, "headers_ns", r.Headers)
	v.before("headers_ns", r.Headers, "first_event_ns", r.FirstEvent)
	v.before("first_event_ns", r.FirstEvent, "close_ns", r.Close)
	v.before("headers_ns", r.Headers, "close_ns", r.Close)
}

// end checks the header, now that the rows are counted.
func (v *validator) end() {
	h := v.header
	if err := h.Check(); err != nil {
		v.add(-1, 0, "header", "%v", err)
	}
	if h.Rows.Recorded != 0 && h.Rows.Recorded != v.rows {
		v.add(-1, 0, "header", "counts %d rows recorded, the file holds %d", h.Rows.Recorded, v.rows)
	}
	dropped := int64(0)
	for reason, n := range h.Rows.Dropped {
		dropped += n
		if n < 0 {
			v.add(-1, 0, "header", "counts %d rows dropped for %s", n, reason)
		}
	}
	if h.Rows.Seen != 0 && h.Rows.Seen != h.Rows.Recorded+dropped {
		v.add(-1, 0, "header", "counts %d rows seen, %d recorded and %d dropped, which do not add up", h.Rows.Seen, h.Rows.Recorded, dropped)
	}
	for _, w := range []struct {
		key, value string
		known      []string
	}{
		{"blocks.partial", string(h.Blocks.Partial), []string{string(PartialKept), string(PartialDropped), string(PartialPadded)}},
		{"blocks.scope", string(h.Blocks.Scope), []string{string(ScopeGlobal), string(ScopeSession), string(ScopeClient)}},
		{"lengths", string(h.Lengths), []string{string(LengthsCumulative), string(LengthsIncremental)}},
		{"partial", h.Partial, []string{PartialInterrupted, PartialRecovered}},
	} {
		if w.value != "" && !slices.Contains(w.known, w.value) {
			v.add(-1, 0, "header", "%s is %q, none of %q", w.key, w.value, w.known)
		}
	}
	if v.rows == 0 {
		v.note("rows", "the trace has no rows")
	}
}

// An idSet holds (id, lap) pairs exactly, in blocks of 65,536 ids that are a
// sorted list while sparse and a bitmap beyond, until limit bytes are used.
type idSet struct {
	limit, used int
	blocks      map[idBlock]*idBits
}

type idBlock struct {
	high int64
	lap  int32
}

type idBits struct {
	list []uint16
	bits *[1024]uint64
}

const (
	idBlockCost = 96  // of an entry of the map
	idListMax   = 512 // ids, from where a bitmap is worth it
)

// add adds a pair. fresh says that it was not there, ok that there was room.
func (s *idSet) add(id int64, lap int32) (fresh, ok bool) {
	if s.blocks == nil {
		s.blocks = map[idBlock]*idBits{}
	}
	k := idBlock{id >> 16, lap}
	b := s.blocks[k]
	if b == nil {
		if s.used += idBlockCost; s.used > s.limit {
			return false, false
		}
		b = new(idBits)
		s.blocks[k] = b
	}
	low := uint16(id)
	if b.bits != nil {
		w, m := &b.bits[low>>6], uint64(1)<<(low&63)
		fresh = *w&m == 0
		*w |= m
		return fresh, true
	}
	i, found := slices.BinarySearch(b.list, low)
	if found {
		return false, true
	}
	before := cap(b.list)
	b.list = slices.Insert(b.list, i, low)
	s.used += 2 * (cap(b.list) - before)
	if len(b.list) > idListMax {
		s.used += 8192 - 2*cap(b.list)
		b.bits = new([1024]uint64)
		for _, x := range b.list {
			b.bits[x>>6] |= 1 << (x & 63)
		}
		b.list = nil
	}
	return true, s.used <= s.limit
}

func (s *idSet) has(id int64, lap int32) bool {
	b := s.blocks[idBlock{id >> 16, lap}]
	if b == nil {
		return false
	}
	low := uint16(id)
	if b.bits != nil {
		return b.bits[low>>6]>>(low&63)&1 == 1
	}
	_, found := slices.BinarySearch(b.list, low)
	return found
}
