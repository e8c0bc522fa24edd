package synth

import (
	"errors"
	"fmt"
	"math"

	"reprise/synth/score"
)

// Rows are rows of the source, of which blocks of time are drawn again. A model
// with Rows holds its source.
type Rows struct {
	// Block is the mean length of a block in seconds; lengths are uniform
	// between half and one and a half of it.
	Block   float64 `json:"block_s"`
	Seconds float64 `json:"seconds"`
	// Gaps lead to each row from the one before, the first from the start.
	Gaps []float64 `json:"gaps_s"`
	In   []int32   `json:"in,omitempty"`
	Out  []int32   `json:"out,omitempty"`
	// Reuse is the time since the continued request, 0 for none, and Depth the
	// shared blocks.
	Reuse []float64 `json:"reuse_s,omitempty"`
	Depth []int32   `json:"depth,omitempty"`
}

func (r *Rows) check() error {
	n := len(r.Gaps)
	var errs []error
	if !interval(r.Block) || r.Block < minWindow || r.Block < r.Seconds/1e6 || !interval(r.Seconds) || r.Seconds > maxHorizon || n == 0 {
		errs = append(errs, fmt.Errorf("%d rows over %v s, blocks of %v s", n, r.Seconds, r.Block))
	}
	for name, k := range map[string]int{"in": len(r.In), "out": len(r.Out), "reuse_s": len(r.Reuse), "depth": len(r.Depth)} {
		if k != 0 && k != n {
			errs = append(errs, fmt.Errorf("%s has %d entries for %d rows", name, k, n))
		}
	}
	if len(r.Reuse) != len(r.Depth) {
		errs = append(errs, errors.New("reuse_s and depth belong together"))
	}
	sum := 0.0
	for _, g := range r.Gaps {
		if !finite(g) || g < 0 {
			errs = append(errs, fmt.Errorf("gap %v", g))
			break
		}
		sum += g
	}
	if sum > r.Seconds*(1+1e-6)+1e-3 {
		errs = append(errs, fmt.Errorf("gaps add up to %v s, more than %v s", sum, r.Seconds))
	}
	for _, col := range [][]int32{r.In, r.Out, r.Depth} {
		for _, v := range col {
			if v < -1 || v > maxTokens {
				errs = append(errs, fmt.Errorf("length %d", v))
				break
			}
		}
	}
	for _, g := range r.Reuse {
		if !finite(g) || g < 0 {
			errs = append(errs, fmt.Errorf("reuse %v", g))
			break
		}
	}
	return errors.Join(errs...)
}

// fitRows keeps the rows of a sample.
func fitRows(s *score.Sample, block float64, rs []reuse) *Rows {
	r := &Rows{Block: block, Seconds: significant(s.Horizon, 12), Gaps: make([]float64, s.N()), In: s.In, Out: s.Out}
	at := 0.0
	for i, t := range s.Arrival {
		// Rounding the sum, not the parts, keeps rows from drifting.
		r.Gaps[i] = rounded(t-at, 6)
		at += r.Gaps[i]
	}
	for i := range r.Gaps {
		r.Gaps[i] = max(0, r.Gaps[i])
	}
	if rs != nil {
		r.Reuse, r.Depth = hints(s, rs)
	}
	return r
}

// A rowSource draws blocks of rows.
type rowSource struct {
	r     *Rows
	s     *stream
	at    []float64 // arrival of each row in the source
	rate  float64   // a factor; time runs so much faster
	from  float64   // where it starts, of generated time
	limit float64

	begin, end float64 // of the block, in source time since from
	offset     float64 // source time of begin
	i          int     // next row of the source
}

func newRowSource(r *Rows, s *stream, rate, from, limit float64) *rowSource {
	d := &rowSource{r: r, s: s, rate: rate, from: from, limit: limit, at: make([]float64, len(r.Gaps))}
	t := 0.0
	for i, g := range r.Gaps {
		t += g
		d.at[i] = t
	}
	d.block(0)
	return d
}

// block begins a new block at from. Source time wraps around its end.
func (d *rowSource) block(from float64) {
	length := min(d.r.Seconds, d.r.Block*(0.5+d.s.uniform()))
	d.begin, d.end = from, from+length
	d.offset = d.s.uniform() * d.r.Seconds
	lo, hi := 0, len(d.at)
	for lo < hi {
		if mid := (lo + hi) / 2; d.at[mid] < d.offset {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	d.i = lo
}

// arrival returns the time and the index of the next row.
func (d *rowSource) arrival() (t float64, row int, ok bool) {
	if d.rate <= 0 {
		return 0, 0, false
	}
	for d.from+d.begin/d.rate < d.limit {
		lap := 0.0
		i := d.i
		if i >= len(d.at) {
			lap, i = d.r.Seconds, i-len(d.at)
		}
		if i < len(d.at) {
			if t = d.begin + d.at[i] + lap - d.offset; t < d.end {
				d.i++
				t = d.from + t/d.rate
				return t, i, t < d.limit
			}
		}
		d.block(d.end)
	}
	return math.Inf(1), 0, false
}
