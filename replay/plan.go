package replay

import (
	"container/heap"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"iter"
	"math"
	"time"

	"reprise/backends"
	"reprise/traceformat"
)

// A Source opens a trace from its beginning. A plan reads it twice.
type Source func() (traceformat.Reader, error)

// A Plan is everything that is decided before the first byte is sent.
type Plan struct {
	Options   Options
	Header    traceformat.Header
	Vocab     Vocabulary
	MaxLen    int // of the model, 0: unknown
	MaxPrompt int // of the prompt alone, 0: nothing beyond MaxLen

	Base time.Duration // trace time of the run's zero
	Lap  time.Duration // trace time from one lap to the next
	Rows int64         // requests to send, all laps
	All  int64         // what Rows would be without shards: all of them together

	Read         int64            // rows of the trace that were looked at
	Clipped      int64            // rows shortened to fit
	Lengthened   int64            // rows lengthened to what the chat template leaves room for
	Skipped      map[string]int64 // rows left out, by reason
	PromptTokens int64            // to send, one lap
	OutputTokens int64            // to ask for, one lap
	Connections  int              // to open ahead: requests in flight at a time, as far as can be guessed
	PeakRate     int64            // most sends in one second of the run
	Forced       int64            // blocks that share one token with a sibling more than recorded, the vocabulary being used up
	Unseen       int64            // blocks that were not compared with their siblings, as there are too many

	// Digest identifies the work: what is sent and when, before speed-up. Two
	// runs with the same digest and seed sent the same requests.
	Digest string

	// Words are what prompts are made of that go as text; nil where they go as
	// token ids.
	Words *Words

	source     Source
	prompts    *prompts
	talks      *conversations // nil where no turn waits
	shares     []share
	sourceLaps int32         // laps of the trace itself, where it is a looped run
	content    time.Duration // of a lap: trace time until the gap after its last row
	end        time.Duration // last send of an arrival process

	cacheInfo backends.CacheInfo // see PrepareCache
}

// An item is one row of the plan.
type item struct {
	row    *traceformat.Row // the reader's memory
	index  int64            // in the trace
	lap    int32
	due    time.Duration // from the start of the run
	prompt int           // tokens to send
	output int           // tokens to ask for
	abort  abort
}

// An abort says when the client hangs up, as the recorded one did.
type abort struct {
	after  time.Duration // from the send, of AbortTime
	tokens int           // received, of AbortToken
	set    bool
}

// patience is what is asked for, beyond what had come when the recorded client
// hung up, where the trace does not say what it had asked for: enough that the
// answer does not end before the client hangs up again.
const patience = 4096

// defaultVocab is assumed where a server does not say: every model in use has
// at least as many ordinary tokens.
const defaultVocab = 32000

// A Target is what a plan has to know of the server.
type Target struct {
	MaxLen    int  // prompt and answer together, 0: unknown
	MaxPrompt int  // prompt alone, 0: nothing beyond MaxLen
	VocabSize int  // ids below are safe to send, 0: unknown
	MinID     int  // ids from here on are ordinary, 0: unknown
	Text      bool // prompts go as text
	// Words of FindWords, for prompts that go as text. Without them they are
	// built in, and the length of a prompt is near what the row says.
	Words *Words
}

// NewPlan reads the trace of src once and checks it against what the server
// can take. Options.MaxLen, MaxPrompt, VocabSize and MinID override what the
// server says.
func NewPlan(src Source, o Options, t Target) (*Plan, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	maxLen, vocab := t.MaxLen, t.VocabSize
	if o.MaxLen > 0 {
		maxLen = o.MaxLen
	}
	if o.VocabSize > 0 {
		vocab = o.VocabSize
	}
	if o.MaxPrompt > 0 {
		t.MaxPrompt = o.MaxPrompt
	}
	if o.MinID > 0 {
		t.MinID = o.MinID
	}
	if vocab == 0 {
		vocab = defaultVocab
	}
	if vocab < 16 {
		return nil, fmt.Errorf("a vocabulary of %d tokens is too small to make prompts of", vocab)
	}
	if t.MaxPrompt == 0 || t.MaxPrompt >= maxLen {
		t.MaxPrompt = max(0, maxLen-1)
	}
	p := &Plan{Options: o, MaxLen: maxLen, MaxPrompt: t.MaxPrompt, Vocab: vocabulary(vocab, t.MinID), Skipped: map[string]int64{}, source: src}
	if t.Text {
		p.Words = t.Words
		if p.Words == nil {
			p.Words = builtInWords()
		}
		p.Vocab = Vocabulary{Size: uint32(len(p.Words.list))}
		if least := p.template() + 1; maxLen > 0 && (maxLen <= least || p.MaxPrompt < least) {
			return nil, fmt.Errorf("the chat template's %d tokens leave no room in the model's context of %d", p.template(), maxLen)
		}
	}

	if o.Sessions != SessionsRecorded || o.Concurrency > 0 && o.Batch == 0 {
		p.talks = newConversations()
	}
	var odd oddities
	var last time.Duration
	var sourceLaps int32 = 1
	var rate load
	digest := sha256.New()
	one, all := int64(0), int64(0) // rows of one lap, of this shard and of all
	for it, err := range p.lap(0, &odd) {
		if err != nil {
			return nil, err
		}
		if all == 0 {
			p.prompts = newPrompts(o.Seed, p.Vocab, int(p.Header.Blocks.Size), p.head())
		}
		last = it.row.Arrival
		sourceLaps = max(sourceLaps, it.row.Lap+1)
		all++
		if o.Shard.has(it) {
			one++
			p.PromptTokens += int64(it.prompt)
			p.OutputTokens += int64(it.output)
			rate.add(it, it.due)
		}
		digestRow(digest, it)
		p.prompts.learn(&it.row.Request, it.prompt-p.template())
		if p.talks != nil {
			if err := p.talks.add(it); err != nil {
				return nil, err
			}
		}
	}
	if long := &odd.long; long.total > 0 {
		return nil, &PlanError{
			Reason: fmt.Sprintf("do not fit into the model's context of %d tokens", maxLen),
			Rows:   long.rows, Total: long.total,
			Hint: "--too-long skip leaves them out, --too-long clip shortens them; both are counted in the result",
		}
	}
	if short := &odd.short; short.total > 0 {
		return nil, &PlanError{
			Reason: fmt.Sprintf("are shorter than the chat template, which takes %d tokens and at least a word", p.template()),
			Rows:   short.rows, Total: short.total,
			Hint: "--too-long skip leaves them out, --too-long clip sends the shortest prompt there is; both are counted in the result",
		}
	}
	if missing := &odd.missing; missing.total > 0 && o.Missing == Fail {
		return nil, &PlanError{
			Reason: "have no known length", Rows: missing.rows, Total: missing.total,
			Hint: "--missing skip leaves them out, and counts them in the result",
		}
	}
	if all == 0 {
		return nil, p.nothing()
	}
	if p.talks != nil {
		if silent := &p.talks.silent; silent.total > 0 && o.Sessions == SessionsThink {
			return nil, &PlanError{
				Reason: "are turns whose pause the trace does not say", Rows: silent.rows, Total: silent.total,
				Hint: pauseHint(o),
			}
		}
		p.talks.planned()
	}
	p.prompts.learned()
	p.Forced, p.Unseen = p.prompts.forced, p.prompts.unseen
	p.PeakRate, p.Connections = rate.peak, rate.most
	p.Digest = hex.EncodeToString(digest.Sum(nil))
	p.Lap = o.Duration
	if p.Lap == 0 {
		// The gap between two laps is the trace's own mean gap.
		p.Lap = last - p.Base
		if all > 1 {
			p.Lap += p.Lap / time.Duration(all-1)
		}
		p.Lap = max(p.Lap, time.Nanosecond)
	}
	p.content = min(p.Lap, max(last-p.Base+(last-p.Base)/time.Duration(max(1, all-1)), time.Nanosecond))
	p.sourceLaps = sourceLaps
	p.shares = shares(o.ScaleRate, p.Lap, o.Seed)
	if err := p.count(one, all); err != nil {
		return nil, err
	}
	if n := o.places(); n > 0 {
		p.Connections = n * max(1, o.Batch)
	}
	if o.MaxInFlight > 0 {
		p.Connections = min(p.Connections, o.MaxInFlight)
	}
	return p, nil
}

// count finds how many requests the whole plan sends, and the busiest second.
// One plain pass through the trace needs no second one.
func (p *Plan) count(one, all int64) error {
	simple := p.Options.ScaleRate == 1 && !p.Options.Arrival.IsSet()
	if simple && (p.Options.Loop == 1 || p.Options.Shard.Of <= 1) {
		p.Rows, p.All = one*int64(p.Options.Loop), all*int64(p.Options.Loop)
		return nil
	}
	var rate load
	for it, err := range p.allItems() {
		if err != nil {
			return err
		}
		n := int64(1)
		if p.talks != nil {
			n += p.talks.follow(requestKey{it.row.ID, it.row.Lap})
		}
		p.All += n
		if !p.Options.Shard.has(it) {
			continue
		}
		p.Rows += n
		rate.add(it, it.due)
		p.end = it.due
	}
	p.PeakRate, p.Connections = rate.peak, rate.most
	if p.Rows == 0 {
		return fmt.Errorf("none of the %d requests falls into the stages of --rate", one)
	}
	return nil
}

// pauseHint says what to do about turns whose pause is unknown.
func pauseHint(o Options) string {
	if o.Concurrency > 0 {
		return "without --sessions think, a turn follows its answer at once"
	}
	return "--sessions both waits for the answer and the recorded time"
}

func (p *Plan) nothing() error {
	switch {
	case p.Read == 0:
		return errors.New("the trace has no rows")
	case len(p.Skipped) > 0:
		return fmt.Errorf("none of the %d rows can be sent: %v", p.Read, p.Skipped)
	default:
		return fmt.Errorf("no row of the trace lies in the part to play (--start %v, --duration %v)", p.Options.Start, p.Options.Duration)
	}
}

// Span is how long the sending takes, in run time.
func (p *Plan) Span() time.Duration {
	if p.Options.Arrival.IsSet() {
		return p.end
	}
	return p.scale(p.Lap*time.Duration(p.Options.Loop-1) + p.content)
}

// Waits reports whether sends depend on answers, so that Span is a guess.
func (p *Plan) Waits() bool { return p.talks != nil || p.Options.Batch > 0 }

// Warmup is the part of the run that is played but not measured, in run time.
func (p *Plan) Warmup() time.Duration { return p.scale(p.Options.Warmup) }

func (p *Plan) scale(d time.Duration) time.Duration {
	if p.Options.Speedup == 1 {
		return d
	}
	return time.Duration(math.Round(float64(d) / p.Options.Speedup))
}

// allItems yields what the schedule of all shards together sends, in order: all
// of the plan but the turns that wait for answers.
func (p *Plan) allItems() iter.Seq2[*item, error] {
	if p.Options.Arrival.IsSet() {
		return p.rearrived(p.laps())
	}
	return p.laps()
}

// rearrived gives the rows of a plan the times of Options.Arrival.
func (p *Plan) rearrived(rows iter.Seq2[*item, error]) iter.Seq2[*item, error] {
	return func(yield func(*item, error) bool) {
		next, stop := iter.Pull(p.Options.Arrival.times(p.Options.Seed))
		defer stop()
		for it, err := range rows {
			if err == nil {
				due, ok := next()
				if !ok {
					return
				}
				it.due = due
			}
			if !yield(it, err) || err != nil {
				return
			}
		}
	}
}

func (p *Plan) laps() iter.Seq2[*item, error] {
	return func(yield func(*item, error) bool) {
		for n := range p.Options.Loop {
			for it, err := range p.superposed(int32(n)) {
				if err == nil && p.talks != nil && p.talks.is[requestKey{it.row.ID, it.row.Lap}] {
					continue
				}
				if !yield(it, err) || err != nil {
					return
				}
			}
		}
	}
}

// superposed yields one lap of every copy of the trace, merged by time. A copy
// counts as a lap of its own: its requests and prompts are no other's.
func (p *Plan) superposed(n int32) iter.Seq2[*item, error] {
	if len(p.shares) == 1 && p.shares[0].keep >= 1 {
		return p.lap(n, nil)
	}
	return func(yield func(*item, error) bool) {
		copies := int32(len(p.shares))
		type cursor struct {
			it   *item
			next func() (*item, error, bool)
		}
		var open []cursor
		for i, s := range p.shares {
			next, stop := iter.Pull2(p.shifted(n, (n*copies+int32(i))*p.sourceLaps, s))
			defer stop()
			open = append(open, cursor{next: next})
		}
		for {
			best := -1
			for i := range open {
				c := &open[i]
				if c.it == nil && c.next != nil {
					it, err, ok := c.next()
					switch {
					case !ok:
						c.next = nil
						continue
					case err != nil:
						yield(nil, err)
						return
					}
					c.it = it
				}
				if c.it != nil && (best < 0 || c.it.due < open[best].it.due) {
					best = i
				}
			}
			if best < 0 {
				return
			}
			if !yield(open[best].it, nil) {
				return
			}
			open[best].it = nil
		}
	}
}

// shifted yields lap n of one copy, in the order of its own time.
func (p *Plan) shifted(n, lap int32, s share) iter.Seq2[*item, error] {
	return func(yield func(*item, error) bool) {
		// A conversation moves as a whole: where its first row stays within the
		// lap, later ones run past its end.
		moved := map[int64]bool{}
		// What the shift moves beyond the end of the lap comes first.
		for _, wrapped := range []bool{true, false} {
			if wrapped && s.offset == 0 {
				continue
			}
			for it, err := range p.lap(n, nil) {
				if err == nil {
					at := it.row.Arrival - p.Base + s.offset
					beyond := at >= p.Lap
					if session, ok := it.row.Session.Get(); ok && s.offset > 0 {
						if first, seen := moved[session]; seen {
							beyond = first
						} else {
							moved[session] = beyond
						}
					}
					if beyond != wrapped || !s.keeps(p.Options.Seed, it) {
						continue
					}
					if wrapped {
						at -= p.Lap
					}
					it.lap, it.due = lap+it.row.Lap, p.scale(at+time.Duration(n)*p.Lap)
				}
				if !yield(it, err) || err != nil {
					return
				}
			}
		}
	}
}

// lap yields the rows of one lap. The first pass, which NewPlan makes with
// notes to fill, sets Header and Base and counts what is left out.
func (p *Plan) lap(n int32, odd *oddities) iter.Seq2[*item, error] {
	first := odd != nil
	return func(yield func(*item, error) bool) {
		rd, err := p.source()
		if err != nil {
			yield(nil, err)
			return
		}
		defer rd.Close()
		if first {
			p.Header = *rd.Header()
		}
		o := &p.Options
		var it item
		index, taken := int64(-1), int64(0)
		var previous time.Duration
		based := !first || o.Start > 0
		if first {
			p.Base = o.Start
		}
		for row, err := range rd.All() {
			if err != nil {
				yield(nil, err)
				return
			}
			index++
			if row.Arrival < previous {
				yield(nil, &UnsortedError{Row: index, ID: row.ID, By: previous - row.Arrival})
				return
			}
			previous = row.Arrival
			if first {
				p.Read++
			}
			if row.Arrival < o.Start {
				continue
			}
			if !based {
				p.Base, based = row.Arrival, true
			}
			if o.Duration > 0 && row.Arrival-p.Base >= o.Duration {
				return
			}
			if o.Limit > 0 && taken >= o.Limit {
				return
			}
			it.row, it.index, it.lap = row, index, n*p.sourceLaps+row.Lap
			if !p.fit(&it, odd) {
				continue
			}
			taken++
			it.due = p.scale(row.Arrival - p.Base + time.Duration(n)*p.Lap)
			if !yield(&it, nil) {
				return
			}
		}
	}
}

// An UnsortedError locates a row that arrives before its predecessor.
type UnsortedError struct {
	Row, ID int64
	By      time.Duration
}

func (e *UnsortedError) Error() string {
	return fmt.Sprintf("row %d (id %d): %v by %v", e.Row, e.ID, traceformat.ErrUnsorted, e.By)
}

func (e *UnsortedError) Unwrap() error { return traceformat.ErrUnsorted }

// Hint says what to do about it.
func (e *UnsortedError) Hint() string { return "trace convert IN -o sorted.parquet sorts it" }

// fit decides the lengths of a row, and whether it is sent at all.
func (p *Plan) fit(it *item, odd *oddities) bool {
	first := odd != nil
	skip := func(reason string) bool {
		if first {
			p.Skipped[reason]++
		}
		return false
	}
	r := it.row
	if r.Endpoint == traceformat.EndpointEmbeddings {
		return skip("embeddings are not played")
	}
	prompt, ok1 := r.PromptTokens.Get()
	output, ok2 := r.OutputTokens.Get()
	it.abort = p.abort(r)
	if it.abort.set && ok1 {
		ok2 = true
		output = r.MaxTokens.Or(output + patience)
		if room := int32(p.MaxLen) - prompt; p.MaxLen > 0 && !r.MaxTokens.OK && room > 0 {
			output = min(output, room)
		}
	}
	if !ok1 || !ok2 || prompt == 0 || output == 0 {
		if first && p.Options.Missing == Fail {
			odd.missing.add(it, fmt.Sprintf("prompt %s, output %s", length(r.PromptTokens), length(r.OutputTokens)))
		}
		return skip("no known length")
	}
	if prompt < 0 || output < 0 {
		if first {
			odd.missing.add(it, fmt.Sprintf("prompt %s, output %s", length(r.PromptTokens), length(r.OutputTokens)))
		}
		return skip("no known length")
	}
	// The recorded length is that of all choices together, and every choice is
	// asked for the same.
	choices := choices(&r.Request)
	it.prompt, it.output = int(prompt), max(1, int(output)/choices)
	defer func() { it.output *= choices }()
	least := p.template() + 1
	if it.prompt < least {
		switch p.Options.TooLong {
		case Skip:
			return skip("shorter than the chat template")
		case Clip:
			it.prompt = least
			if first {
				p.Lengthened++
			}
		default:
			if first {
				odd.short.add(it, fmt.Sprintf("%d tokens", it.prompt))
			}
			return false
		}
	}
	if p.MaxLen <= 0 || it.prompt+it.output <= p.MaxLen && it.prompt <= p.MaxPrompt {
		return true
	}
	switch p.Options.TooLong {
	case Skip:
		return skip("longer than the model's context")
	case Clip:
		// The prompt gives way first: its beginning, which it shares with
		// others, stays. An answer longer than the context leaves one token.
		it.output = min(it.output, p.MaxLen-least)
		it.prompt = min(it.prompt, p.MaxLen-it.output, p.MaxPrompt)
		if first {
			p.Clipped++
		}
		return true
	default:
		if first {
			odd.long.add(it, fmt.Sprintf("%d + %d tokens", it.prompt, it.output))
		}
		return false
	}
}

// template is how many tokens the server adds to a prompt.
func (p *Plan) template() int {
	if p.Words == nil {
		return 0
	}
	return p.Words.Template
}

// head is how many of them come before it.
func (p *Plan) head() int {
	if p.Words == nil {
		return 0
	}
	return p.Words.Head
}

// choices is how many answers r asks for.
func choices(r *traceformat.Request) int { return int(max(1, min(r.N.Or(1), maxChoices))) }

// maxChoices is OpenAI's own limit.
const maxChoices = 128

// abort decides whether and when the client of r hangs up.
func (p *Plan) abort(r *traceformat.Row) abort {
	// What this program's own interrupt cut short was no user's decision, and
	// nobody can leave a batch.
	if p.Options.Batch > 0 || r.Result != traceformat.ResultClientAbort || r.Error == timeoutErrors[interrupted] {
		return abort{}
	}
	switch p.Options.Aborts {
	case AbortToken:
		if n := int(r.OutputTokens.V); n > 0 {
			return abort{tokens: n, set: true}
		}
		// Nothing had come when the recorded client hung up: only time can say
		// when.
		fallthrough
	case AbortTime:
		return abort{after: max(r.Abort.V, time.Nanosecond), set: r.Abort.OK}
	}
	return abort{}
}

func length(o traceformat.Opt[int32]) string {
	if v, ok := o.Get(); ok {
		return fmt.Sprint(v)
	}
	return "unknown"
}

// oddities are the rows that make a plan fail.
type oddities struct{ long, short, missing notes }

type notes struct {
	rows  []RowNote
	total int64
}

func (n *notes) add(it *item, note string) {
	n.total++
	if len(n.rows) < maxNotes {
		n.rows = append(n.rows, RowNote{it.index, it.row.ID, note})
	}
}

// digestRow adds what a row contributes to the work: identity, time, lengths
// and prefix.
func digestRow(h hash.Hash, it *item) {
	var b [8 * 5]byte
	put := func(i int, v uint64) { binary.LittleEndian.PutUint64(b[8*i:], v) }
	put(0, uint64(it.row.ID))
	put(1, uint64(it.row.Arrival))
	put(2, uint64(it.prompt)<<32|uint64(it.output))
	put(3, uint64(it.row.Session.Or(-1)))
	put(4, uint64(len(it.row.PrefixBlocks)))
	h.Write(b[:])
	for _, id := range it.row.PrefixBlocks {
		binary.LittleEndian.PutUint64(b[:], id)
		h.Write(b[:8])
	}
}

// A load is what an ascending sequence of sends amounts to.
type load struct {
	second int64
	n      int64
	peak   int64 // most sends in one second
	ends   endHeap
	most   int // most requests in flight at a time, as far as can be guessed
}

// The pace of an engine that nothing is known of: a first token after half a
// second, then 33 a second. It sizes the pool of connections opened ahead; too
// many cost memory, too few the time of a handshake in a burst.
const (
	guessedTTFT = 500 * time.Millisecond
	guessedTPOT = 30 * time.Millisecond
)

func (l *load) add(it *item, due time.Duration) {
	if s := int64(due / time.Second); s != l.second {
		l.second, l.n = s, 0
	}
	l.n++
	l.peak = max(l.peak, l.n)

	for len(l.ends) > 0 && l.ends[0] <= due {
		heap.Pop(&l.ends)
	}
	took, known := it.row.E2E.Get()
	if !known {
		took = guessedTTFT + time.Duration(it.output)*guessedTPOT
	}
	heap.Push(&l.ends, due+took)
	l.most = max(l.most, len(l.ends))
}

type endHeap []time.Duration

func (h endHeap) Len() int           { return len(h) }
func (h endHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h endHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *endHeap) Push(x any)        { *h = append(*h, x.(time.Duration)) }
func (h *endHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
