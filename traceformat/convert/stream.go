package convert

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

const (
	// lookahead is how many rows are read when a file is opened, to say in the
	// header what only the data know: the tick of the clock, the block size.
	lookahead = 10_000
	// minStamps is how many distinct stamps make a tick believable. With 15
	// distances the chance that their greatest common divisor is a multiple of
	// the true tick is about 2^-15.
	minStamps = 16
	// minTick is the finest tick that is worth a name; below it a clock counts
	// as exact.
	minTick = time.Microsecond
	// maxJitter is how far a stamp may lie from its tick, as a share of the tick.
	// Mooncake's 3 s ticks come up to 3 ms early or late.
	maxJitter = 500
	// maxPerTick bounds the rows that Dequantise holds at a time.
	maxPerTick = 1 << 20
)

// A source reads the rows of one foreign file, in the order of the file.
type source interface {
	// read fills row, which is zero. Arrival is the source's stamp, from
	// whatever origin its clock has; reader makes it relative. The slices of row
	// belong to the source and stand until the next read. The error is io.EOF
	// at a clean end, and otherwise located.
	read(row *traceformat.Row) error
	// where locates an error at the row that was read last.
	where(err error) error
	// finish adds to the header what was seen up to now.
	finish(h *traceformat.Header)
}

// readerConfig says how a source's stamps are to be taken.
type readerConfig struct {
	header *traceformat.Header
	unit   time.Duration // resolution that the format itself has
	dated  bool          // stamps are Unix times
	params params
}

// reader makes a traceformat.Reader of a source.
type reader struct {
	source
	readerConfig
	ahead    []*traceformat.Row // rows that were read when the file was opened
	aheadErr error              // what ended them, if the file did not go on
	next     int                // index into ahead
	scratch  traceformat.Row

	first  int64 // first stamp
	begun  bool
	last   time.Duration
	stamps int           // distinct stamps seen
	gcd    int64         // of all distances from first
	beat   time.Duration // tick that all stamps are near, 0 if there is none
	jitter time.Duration // greatest distance of a stamp from beat
	rows   int64
	spread time.Duration // tick that Dequantise spreads over, 0 for none
}

// Keys that say how stamps lie about their ticks: in Header.Extra the greatest
// distance of one from its tick, in Request.Extra, under Dequantise, the
// distance of the row's own, so that an export gives its stamp back.
const (
	TickJitter = "convert.tick_jitter_ns"
	offTick    = "off_tick_ns"
)

// newReader reads ahead and completes the header.
func newReader(src source, c readerConfig) (*reader, error) {
	r := &reader{source: src, readerConfig: c}
	for len(r.ahead) < lookahead {
		var row traceformat.Row
		if err := r.source.read(&row); err != nil {
			r.aheadErr = err
			break
		}
		if err := r.place(&row); err != nil {
			r.aheadErr = err
			break
		}
		r.ahead = append(r.ahead, row.Clone())
	}
	if len(r.ahead) == 0 && r.aheadErr != io.EOF {
		return nil, errors.Join(r.aheadErr, r.Close())
	}
	r.findBeat()
	r.describe()
	if c.params.dequantise && c.header.Clock.Tick > 0 {
		r.spread = c.header.Clock.Tick
		c.header.Clock.Dequantised = "uniform"
	}
	return r, nil
}

// place makes a stamp relative, checks the order and looks at the tick.
func (r *reader) place(row *traceformat.Row) error {
	at := int64(row.Arrival)
	if !r.begun {
		r.begun, r.first = true, at
	}
	row.Arrival = time.Duration(at - r.first)
	if row.Arrival < r.last {
		return r.where(fmt.Errorf("%w: %v after %v from the first row", traceformat.ErrUnsorted, row.Arrival, r.last))
	}
	if err := row.Check(); err != nil {
		return r.where(err)
	}
	if row.Arrival > r.last {
		r.stamps++
		r.gcd = gcd(r.gcd, int64(row.Arrival))
		r.last = row.Arrival
		if r.beat > 0 {
			r.follow(row.Arrival)
		}
	}
	r.rows++
	return nil
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// findBeat looks for a tick that the rows read ahead are near, all of them,
// though few may be on it. The distance between neighbours that is met most is
// the tick, or a small multiple where many ticks are empty.
func (r *reader) findBeat() {
	if r.stamps < minStamps-1 {
		return
	}
	gaps := map[time.Duration]int{}
	var mode, last time.Duration
	for i := range r.ahead {
		gap := r.ahead[i].Arrival - last
		last = r.ahead[i].Arrival
		if gap == 0 {
			continue
		}
		gaps[gap]++
		if n := gaps[gap]; n > gaps[mode] || n == gaps[mode] && gap < mode {
			mode = gap
		}
	}
	for part := range time.Duration(4) {
		r.beat, r.jitter = mode/(part+1), 0
		for i := range r.ahead {
			if r.beat > 0 {
				r.follow(r.ahead[i].Arrival)
			}
		}
		if r.beat > 0 {
			return
		}
	}
}

// follow gives the beat up where a stamp is too far from it.
func (r *reader) follow(at time.Duration) {
	off := (at - at.Round(r.beat)).Abs()
	if off > r.beat/maxJitter {
		r.beat, r.jitter = 0, 0
		return
	}
	r.jitter = max(r.jitter, off)
}

// describe brings the header up to what was read.
func (r *reader) describe() {
	h := r.header
	tick := r.unit
	if r.stamps >= minStamps-1 {
		tick = time.Duration(r.gcd)
	}
	if r.beat > tick {
		tick = r.beat
	}
	if tick < minTick {
		tick = 0
	}
	h.Clock.Tick = tick
	delete(h.Extra, TickJitter)
	if tick == r.beat && r.jitter > 0 {
		h.Extra[TickJitter] = strconv.FormatInt(int64(r.jitter), 10)
	}
	if r.begun {
		if r.dated {
			h.Start = time.Unix(0, r.first).UTC()
		} else if r.first != 0 {
			h.Extra[SourceStart] = strconv.FormatInt(r.first, 10)
		}
	}
	h.Rows.Recorded = r.rows
	h.Rows.Seen = r.rows
	for _, n := range h.Rows.Dropped {
		h.Rows.Seen += n
	}
	r.source.finish(h)
}

func (r *reader) Header() *traceformat.Header { return r.header }

// Close frees what a sort holds. The file belongs to whoever opened it.
func (r *reader) Close() error {
	if c, ok := r.source.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (r *reader) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		var err error
		if r.spread > 0 {
			err = r.spreadRows(yield)
		} else {
			err = r.copyRows(yield)
		}
		r.describe()
		if r.spread > 0 {
			r.header.Clock.Tick = r.spread // whatever came later, this was used
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(nil, err)
		}
	}
}

// errStopped says that the caller broke out of the loop.
var errStopped = errors.New("stopped")

// pull returns the next row, which stands until the call after.
func (r *reader) pull() (*traceformat.Row, error) {
	if r.next < len(r.ahead) {
		row := r.ahead[r.next]
		r.ahead[r.next] = nil // it is not needed again
		r.next++
		return row, nil
	}
	r.ahead = nil
	r.next = 0
	if r.aheadErr != nil {
		return nil, r.aheadErr
	}
	r.scratch = traceformat.Row{}
	if err := r.source.read(&r.scratch); err != nil {
		r.aheadErr = err
		return nil, err
	}
	if err := r.place(&r.scratch); err != nil {
		r.aheadErr = err
		return nil, err
	}
	return &r.scratch, nil
}

func (r *reader) copyRows(yield func(*traceformat.Row, error) bool) error {
	for {
		row, err := r.pull()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !yield(row, nil) {
			return errStopped
		}
	}
}

// spreadRows gives the rows of each tick arrivals uniform over it. The draws are
// sorted, so that rows keep their order, and each belongs to its row, so that
// a tick's rows do not depend on the ticks before it.
func (r *reader) spreadRows(yield func(*traceformat.Row, error) bool) error {
	var batch []traceformat.Row
	var draws []time.Duration
	flush := func() error {
		draws = draws[:0]
		for i := range batch {
			rng := rand.New(rand.NewPCG(r.params.seed, uint64(batch[i].ID)))
			draws = append(draws, time.Duration(rng.Int64N(int64(r.spread))))
		}
		slices.Sort(draws)
		for i := range batch {
			tick := batch[i].Arrival.Round(r.spread)
			if off := batch[i].Arrival - tick; off != 0 {
				batch[i].Extra = appendExtra(batch[i].Extra, offTick, strconv.FormatInt(int64(off), 10))
			}
			batch[i].Arrival = tick + draws[i]
			if !yield(&batch[i], nil) {
				return errStopped
			}
		}
		batch = batch[:0]
		return nil
	}
	for {
		row, err := r.pull()
		if err != nil {
			if flushed := flush(); flushed != nil {
				return flushed
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
		tick := row.Arrival.Round(r.spread)
		if (row.Arrival - tick).Abs() > r.spread/maxJitter {
			if flushed := flush(); flushed != nil {
				return flushed
			}
			return r.where(fmt.Errorf("stamp is %v after the first, off the %v tick of the first %d rows: read it without dequantising",
				row.Arrival, r.spread, lookahead))
		}
		if len(batch) > 0 && batch[0].Arrival.Round(r.spread) != tick {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(batch) == maxPerTick {
			return r.where(fmt.Errorf("more than %d rows in one tick of %v: read it without dequantising", maxPerTick, r.spread))
		}
		batch = append(batch, *row.Clone())
	}
}

// finishText adds to the header what all text sources collect.
func finishText(h *traceformat.Header, s style, dropped map[string]bool) {
	if len(s) > 0 {
		h.Extra[sourceStyle] = strings.Join(s, ",")
	}
	if len(dropped) > 0 {
		h.Extra[DroppedFields] = strings.Join(slices.Sorted(maps.Keys(dropped)), ",")
	}
}
