package synth

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// Orders in which the windows of a profile are played.
const (
	OrderRecorded  = "recorded"  // as they were: this hour again
	OrderResampled = "resampled" // blocks of them in random order: another such hour
	OrderRows      = "rows"      // beyond the end: blocks of the client's Rows
)

// A Profile is the rate of a client, and what its lengths were like, window by
// window.
type Profile struct {
	Window  float64 `json:"window_s"`
	Windows int     `json:"windows"`
	// Spans holds the rates a second of the windows in which the client was
	// active; in all others it is silent.
	Spans []Span `json:"spans"`
	// Exact says that a window has the learnt number of arrivals and no other;
	// otherwise they are random around it.
	Exact bool `json:"exact,omitempty"`
	// Order is how windows follow each other, up to the end of the profile;
	// Beyond is how they do after it. Block is the mean length of the stretches
	// that a random order keeps together.
	Order  string `json:"order"`
	Beyond string `json:"beyond"`
	// BeyondLevel raises the levels of inputs, from 0 to 1, to a power after the
	// end: above 1 prompts are shorter then. Absent: as before.
	BeyondLevel float64 `json:"beyond_level,omitempty"`
	Block       float64 `json:"block_s"`
	// Split says how arrivals cluster inside windows: entry j is the correlation
	// of two arrivals of one cell in which half of it they fall, for cells of the
	// window divided by 2^j. Absent or 0: as if by coin, a Poisson process.
	Split []float64 `json:"split,omitempty"`
	// Stride is how many windows share a row of In and Out.
	Stride int `json:"length_stride,omitempty"`
	// In holds the weight of each input bin, by row. Bins are equal shares of
	// the client's input lengths. Where counts are exact, a window deals them
	// like cards.
	In [][]int `json:"in,omitempty"`
	// Out holds how much more likely than the copula has it an output of each
	// coarse bin is, in thousandths, by row.
	Out [][]int `json:"out,omitempty"`
}

// A Span is consecutive windows of a Profile.
type Span struct {
	At    int       `json:"at"`
	Rates []float64 `json:"rates"`
	// Shapes of the gaps of each window where a source says them, and a letter
	// for each: g for Gamma, w for Weibull.
	Shapes []float64 `json:"shapes,omitempty"`
	Kinds  string    `json:"kinds,omitempty"`
}

const maxWindows = 1 << 20

// minWindow bounds the windows of profiles and the steps of states from below,
// so that a quiet hour is not millions of them.
const minWindow = 1e-3

// maxSplits bounds Split: a window of an hour divided by 2^24 is 0.2 ms.
const maxSplits = 24

func (p *Profile) check(l *Lengths) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("profile: "+format, args...)) }
	if !(p.Window >= minWindow) || p.Windows <= 0 || p.Windows > maxWindows || p.Window*float64(p.Windows) > maxHorizon {
		bad("%d windows of %v s", p.Windows, p.Window)
	}
	next := 0
	for i, s := range p.Spans {
		if s.At < next || s.At > p.Windows || len(s.Rates) > p.Windows-s.At {
			bad("span %d at window %d lies outside, or before the one ahead of it", i, s.At)
		}
		next = s.At + len(s.Rates)
		for _, r := range s.Rates {
			if !finite(r) || r < 0 || r > 1e9 {
				bad("span %d: rate %v", i, r)
				break
			}
		}
		if s.Shapes != nil && len(s.Shapes) != len(s.Rates) {
			bad("span %d has %d shapes for %d rates", i, len(s.Shapes), len(s.Rates))
		}
		for _, k := range s.Shapes {
			if err := checkShape(k); err != nil {
				bad("span %d: %w", i, err)
				break
			}
		}
		if len(s.Kinds) != len(s.Shapes) || strings.Trim(s.Kinds, "gw") != "" {
			bad("span %d: want a letter g or w for each shape", i)
		}
	}
	if !knownOrder(p.Order) {
		bad("order is %q, want recorded or resampled", clip(p.Order))
	}
	if !knownOrder(p.Beyond) && p.Beyond != OrderRows {
		bad("beyond is %q, want recorded, resampled or rows", clip(p.Beyond))
	}
	if !(p.BeyondLevel >= 0 && p.BeyondLevel <= 100) {
		bad("beyond_level is %v, want 0 to 100", p.BeyondLevel)
	}
	if !interval(p.Block) {
		bad("block_s is %v", p.Block)
	}
	if len(p.Split) > maxSplits {
		bad("split has %d levels, want at most %d", len(p.Split), maxSplits)
	}
	for _, r := range p.Split {
		if !(r >= 0 && r < 1) {
			bad("split: correlation %v, want 0 to less than 1", r)
		}
	}
	if p.In != nil || p.Out != nil {
		if l == nil || p.Stride <= 0 || p.Stride > maxWindows {
			bad("in and out need lengths and a stride of windows")
			return errors.Join(errs...)
		}
		rows := (p.Windows + p.Stride - 1) / p.Stride
		if p.In != nil && (len(p.In) != rows || !rectangular(p.In) || len(p.In[0]) == 0 || len(p.In[0]) > 4096) {
			bad("in: want %d rows of equally many weights", rows)
		}
		if p.Out != nil && (len(p.Out) != rows || !rectangular(p.Out) || len(p.Out[0]) == 0 || len(l.Copula) == 0 || len(l.Copula)%len(p.Out[0]) != 0) {
			bad("out: want %d rows of weights that divide the bins of the copula", rows)
		}
	}
	return errors.Join(errs...)
}

func knownOrder(o string) bool {
	return o == OrderRecorded || o == OrderResampled
}

// rectangular says whether rows are equally long and hold no negative weight.
func rectangular(rows [][]int) bool {
	for _, row := range rows {
		if len(row) != len(rows[0]) {
			return false
		}
		for _, w := range row {
			if w < 0 || w > 1<<40 {
				return false
			}
		}
	}
	return true
}

// rates returns the rate of every window.
func (p *Profile) rates() []float64 {
	r := make([]float64, p.Windows)
	for _, s := range p.Spans {
		copy(r[s.At:], s.Rates)
	}
	return r
}

// spans holds the stretches of rates that are not zero.
func spans(rates []float64) []Span {
	var ss []Span
	for i := 0; i < len(rates); {
		if rates[i] == 0 {
			i++
			continue
		}
		j := i
		for j < len(rates) && (rates[j] != 0 || silence(rates[j:]) < 8) {
			j++
		}
		for rates[j-1] == 0 {
			j--
		}
		s := Span{At: i}
		for _, r := range rates[i:j] {
			s.Rates = append(s.Rates, significant(r, 4))
		}
		ss = append(ss, s)
		i = j
	}
	return ss
}

// silence counts the zeros that rates start with.
func silence(rates []float64) int {
	for i, r := range rates {
		if r != 0 {
			return i
		}
	}
	return len(rates)
}

// pieces returns the windows one after another.
func (p *Profile) pieces(l *Lengths, s *stream, rate, bursts, from float64, order string) func(float64) piece {
	type window struct {
		rate float64
		gap  gapper
	}
	gap := gapper((*stream).exp)
	windows := make([]window, p.Windows)
	for i := range windows {
		windows[i].gap = gap
	}
	mean := 0.0
	for _, sp := range p.Spans {
		for k, r := range sp.Rates {
			w := &windows[sp.At+k]
			w.rate = r
			mean += r / float64(p.Windows)
			if sp.Shapes != nil {
				kind := ArrivalsGamma
				if sp.Kinds[k] == 'w' {
					kind = ArrivalsWeibull
				}
				w.gap = newGapper(kind, sp.Shapes[k], nil)
			}
		}
	}
	if bursts != 1 {
		// The deviations of the rate grow; what would be negative is silent, and
		// the mean stays.
		sum := 0.0
		for i := range windows {
			windows[i].rate = max(0, mean+(windows[i].rate-mean)*bursts)
			sum += windows[i].rate / float64(p.Windows)
		}
		for i := range windows {
			if sum > 0 {
				windows[i].rate *= mean / sum
			}
		}
	}
	beyond := p.Beyond
	if order == "" {
		order = p.Order
	} else {
		beyond = order
	}
	tables := newWindowTables(p, l)
	skip := int(from / p.Window)
	at, played := skip%p.Windows-1, skip
	left := 0 // windows of the stretch
	return func(float64) piece {
		now := order
		if played >= p.Windows {
			now = beyond
		}
		played++
		at++
		if now == OrderResampled {
			if left--; left < 0 {
				at = s.below(p.Windows)
				left = s.round(p.Block / p.Window * (0.5 + s.uniform()))
			}
		}
		if at >= p.Windows {
			at = 0
		}
		// Counting from the start keeps windows from drifting.
		w := piece{end: float64(played) * p.Window, rate: windows[at].rate * rate, count: -1, gap: windows[at].gap}
		w.split = p.Split
		if p.Exact {
			w.count = s.round(w.rate * p.Window)
		} else if p.Split != nil {
			w.count = s.poisson(w.rate * p.Window)
		}
		if tables != nil {
			w.lengths = tables.at(at / p.Stride)
		}
		if p.BeyondLevel > 0 && played > p.Windows {
			later := windowLengths{}
			if w.lengths != nil {
				later = *w.lengths
			}
			later.power = p.BeyondLevel
			w.lengths = &later
		}
		return w
	}
}

// windowTables makes the tables of windows when they are entered.
type windowTables struct {
	p    *Profile
	l    *Lengths
	row  int
	made *windowLengths
}

func newWindowTables(p *Profile, l *Lengths) *windowTables {
	if l == nil || p.In == nil && p.Out == nil {
		return nil
	}
	return &windowTables{p: p, l: l, row: -1}
}

func (t *windowTables) at(row int) *windowLengths {
	if row == t.row {
		return t.made
	}
	w := new(windowLengths)
	if t.p.In != nil {
		w.in = newAlias(orEven(t.p.In[row]))
		if t.p.Exact {
			w.urn = newUrn(t.p.In[row])
		}
	}
	if t.p.Out != nil {
		w.rows = tilted(t.l.Copula, t.p.Out[row])
	}
	t.row, t.made = row, w
	return w
}

// orEven turns weights into numbers; where all are 0, as in a window without
// rows, all bins weigh the same.
func orEven(weights []int) []float64 {
	f := floats(weights)
	for _, w := range weights {
		if w > 0 {
			return f
		}
	}
	for i := range f {
		f[i] = 1
	}
	return f
}

// tilted multiplies the columns of a copula by the factors of coarse bins, in
// thousandths.
func tilted(copula [][]int, factors []int) []alias {
	k := len(copula)
	rows := make([]alias, k)
	weights := make([]float64, k)
	for i, row := range copula {
		sum := 0.0
		for j, w := range row {
			weights[j] = float64(w) * float64(factors[j*len(factors)/k])
			sum += weights[j]
		}
		if sum <= 0 {
			for j, w := range row {
				weights[j] = float64(w)
			}
		}
		rows[i] = newAlias(weights)
	}
	return rows
}

// duration is the length of the profile in seconds.
// mean is the mean rate of all windows.
func (p *Profile) mean() float64 {
	sum := 0.0
	for _, s := range p.Spans {
		for _, r := range s.Rates {
			sum += r
		}
	}
	return sum / float64(p.Windows)
}

func (p *Profile) duration() float64 { return p.Window * float64(p.Windows) }

// windowsOf is how many windows of a width fill a time.
func windowsOf(horizon, width float64) int { return max(1, int(math.Ceil(horizon/width-1e-9))) }

// An urn deals what it holds in random order and is filled again when empty, so
// that a window gets the lengths that it had, as far as bins tell them apart.
type urn struct {
	held, left []int
	total      int
}

// newUrn returns nil where there is nothing to deal.
func newUrn(weights []int) *urn {
	u := &urn{held: weights, left: make([]int, len(weights))}
	u.fill()
	if u.total == 0 {
		return nil
	}
	return u
}

func (u *urn) fill() {
	copy(u.left, u.held)
	for _, n := range u.held {
		u.total += n
	}
}

func (u *urn) draw(s *stream) int {
	if u.total == 0 {
		u.fill()
	}
	k := s.below(u.total)
	u.total--
	for i := range u.left {
		if k < u.left[i] {
			u.left[i]--
			return i
		}
		k -= u.left[i]
	}
	return len(u.left) - 1
}
