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
	ahead    []traceformat.Row // rows that were read when the file was opened
	aheadErr error             // what ended them, if the file did not go on
	next     int               // index into ahead
	scratch  traceformat.Row

	first  int64 // first stamp
	begun  bool
	last   time.Duration
	stamps int   // distinct stamps seen
	gcd    int64 // of all distances from first
	rows   int64
	spread time.Duration // tick that Dequantise spreads over, 0 for none
}

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
		r.ahead = append(r.ahead, *row.Clone())
	}
	if len(r.ahead) == 0 && r.aheadErr != io.EOF {
		return nil, r.aheadErr
	}
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
	if row.Arrival > r.last {
		r.stamps++
		r.gcd = gcd(r.gcd, int64(row.Arrival))
		r.last = row.Arrival
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

// describe brings the header up to what was read.
func (r *reader) describe() {
	h := r.header
	tick := r.unit
	if r.stamps >= minStamps-1 {
		tick = time.Duration(r.gcd)
	}
	if tick < minTick {
		tick = 0
	}
	h.Clock.Tick = tick
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

// Close frees nothing: the file belongs to whoever opened it.
func (r *reader) Close() error { return nil }

func (r *reader) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		var err error
		if r.spread > 0 {
			err = r.spreadRows(yield)
		} else {
			err = r.copyRows(yield)
		}
		spread := r.header.Clock.Tick
		r.describe()
		if r.spread > 0 {
			r.header.Clock.Tick = spread // it is what was spread over
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
		row := &r.ahead[r.next]
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
			batch[i].Arrival += draws[i]
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
		if row.Arrival%r.spread != 0 {
			if flushed := flush(); flushed != nil {
				return flushed
			}
			return r.where(fmt.Errorf("stamp is %v after the first, off the %v tick of the first %d rows: read it without dequantising",
				row.Arrival, r.spread, lookahead))
		}
		if len(batch) > 0 && batch[0].Arrival != row.Arrival {
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
