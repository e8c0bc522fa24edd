package synth

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Kinds of arrival processes.
const (
	ArrivalsFixed       = "fixed"       // equal gaps
	ArrivalsExponential = "exponential" // a Poisson process
	ArrivalsGamma       = "gamma"       // renewal, gaps Gamma with Shape
	ArrivalsWeibull     = "weibull"     // renewal, gaps Weibull with Shape
	ArrivalsQuantiles   = "quantiles"   // renewal, gaps by Gaps
	ArrivalsMMPP        = "mmpp"        // Poisson at the rate of a Markov chain's state
	ArrivalsProfile     = "profile"     // rates by window
	ArrivalsRows        = "rows"        // blocks of the client's Rows
)

// Arrivals is the process of the requests of a client, or of its sessions where
// it has Sessions.
type Arrivals struct {
	Kind string `json:"kind"`
	// Rate is the mean rate a second.
	Rate float64 `json:"rate"`
	// Shape of Gamma or Weibull gaps; below 1 they come in bursts.
	Shape   float64   `json:"shape,omitempty"`
	Gaps    *Marginal `json:"gaps,omitempty"` // in units of their mean
	States  *States   `json:"states,omitempty"`
	Profile *Profile  `json:"profile,omitempty"`
}

func (a *Arrivals) check(c *Client) error {
	if !finite(a.Rate) || a.Rate < 0 || a.Rate > 1e9 {
		return fmt.Errorf("rate is %v a second, want 0 to 1e9", a.Rate)
	}
	var errs []error
	switch a.Kind {
	case ArrivalsFixed, ArrivalsExponential:
	case ArrivalsGamma, ArrivalsWeibull:
		errs = append(errs, checkShape(a.Shape))
	case ArrivalsQuantiles:
		if a.Gaps == nil {
			return errors.New("kind quantiles needs gaps")
		}
		if err := a.Gaps.check(); err != nil {
			return fmt.Errorf("gaps: %w", err)
		}
		if a.Gaps.Min < 0 || !(a.Gaps.quantiler().mean() > 0) {
			return errors.New("gaps: have to be positive")
		}
	case ArrivalsMMPP:
		if a.States == nil {
			return errors.New("kind mmpp needs states")
		}
		errs = append(errs, a.States.check(c.Lengths))
	case ArrivalsProfile:
		if a.Profile == nil {
			return errors.New("kind profile needs a profile")
		}
		if err := a.Profile.check(c.Lengths); err != nil {
			errs = append(errs, err)
		} else if mean := a.Profile.mean(); a.Profile.Windows >= 10 && (a.Rate > 1.25*mean || a.Rate < mean/1.25) {
			// The windows are what is generated: an edit of the rate would do nothing.
			errs = append(errs, fmt.Errorf("rate is %v a second and the windows of the profile make %.4g: edit these, or weight, which scales the client", a.Rate, mean))
		}
		if a.Profile.Beyond == OrderRows && c.Rows == nil {
			errs = append(errs, errors.New("profile: beyond is rows, and there are none"))
		}
	case ArrivalsRows:
		if c.Rows == nil {
			return errors.New("kind rows needs rows")
		}
	default:
		return fmt.Errorf("kind %q is not known", clip(a.Kind))
	}
	return errors.Join(errs...)
}

func checkShape(k float64) error {
	if !finite(k) || k < minShape || k > 1e6 {
		return fmt.Errorf("shape is %v, want %v to 1e6", k, minShape)
	}
	return nil
}

// minShape bounds Gamma and Weibull gaps away from a process that stands still:
// at 0.001 the coefficient of variation of Gamma gaps is 32.
const minShape = 1e-3

// A gapper draws gaps of mean 1.
type gapper func(s *stream) float64

func newGapper(kind string, shape float64, gaps *Marginal) gapper {
	switch kind {
	case ArrivalsFixed:
		return func(*stream) float64 { return 1 }
	case ArrivalsGamma:
		return func(s *stream) float64 { return s.gamma(shape) / shape }
	case ArrivalsWeibull:
		scale := 1 / math.Gamma(1+1/shape)
		if !interval(scale) { // the mean overflows: bursts as tight as it gets
			return func(s *stream) float64 { return s.gamma(shape) / shape }
		}
		return func(s *stream) float64 { return scale * math.Pow(s.exp(), 1/shape) }
	case ArrivalsQuantiles:
		q := gaps.quantiler()
		mean := q.mean()
		return func(s *stream) float64 { return q.real(s.uniform()) / mean }
	}
	return (*stream).exp
}

// A piece is a stretch of constant rate.
type piece struct {
	end     float64
	rate    float64   // a second
	count   int       // exactly so many arrivals; -1: as the rate has it
	split   []float64 // how these cluster, see Profile
	gap     gapper    // nil: as before
	lengths *windowLengths
}

// A pacer yields the arrivals of one client, ascending.
type pacer struct {
	s     *stream
	gap   gapper
	piece piece
	t     float64
	limit float64
	left  int       // of piece.count
	times []float64 // of these, the next last; nil: uniform
	next  func(from float64) piece
}

// newPacer starts the arrivals of c. rate multiplies, bursts changes their
// burstiness; from and limit bound them.
func newPacer(c *Client, seed uint64, path []uint64, rate, bursts, from, limit float64, order string) *pacer {
	a := &c.Arrivals
	s := newStream(seed, append(path, purposeArrivals)...)
	p := &pacer{s: s, limit: limit, gap: newGapper(a.Kind, a.Shape, a.Gaps)}
	rate *= c.Weight
	switch a.Kind {
	case ArrivalsMMPP:
		p.next = a.States.pieces(c.Lengths, newStream(seed, append(path, purposeOrder)...), rate, bursts, from)
	case ArrivalsProfile:
		p.next = a.Profile.pieces(c.Lengths, newStream(seed, append(path, purposeOrder)...), rate, bursts, from, order)
		p.gap = (*stream).exp
	default:
		p.next = func(float64) piece { return piece{end: math.Inf(1), rate: a.Rate * rate, count: -1} }
		if bursts != 1 {
			p.gap = burstier(p.gap, a, bursts)
		}
	}
	p.enter(from)
	return p
}

// burstier changes the coefficient of variation of renewal gaps by a factor, by
// Gamma gaps of that variation.
func burstier(gap gapper, a *Arrivals, by float64) gapper {
	s := newStream(1)
	var sum, squares float64
	const n = 20000
	for range n {
		x := gap(s)
		sum, squares = sum+x, squares+x*x
	}
	mean := sum / n
	cv := math.Sqrt(max(0, squares/n/mean/mean-1)) * by
	if cv < 1e-2 {
		return newGapper(ArrivalsFixed, 0, nil)
	}
	return newGapper(ArrivalsGamma, max(minShape, 1/(cv*cv)), nil)
}

func (p *pacer) enter(from float64) {
	p.t = from
	p.piece = p.next(from)
	p.left = p.piece.count
	if p.piece.gap != nil {
		p.gap = p.piece.gap
	}
	p.times = p.times[:0]
	if p.piece.split != nil && p.left > 0 && p.left <= maxScatter {
		p.scatter(from, p.piece.end, p.left, p.piece.split)
	}
}

// maxScatter bounds the arrivals of a window that are held at once. Beyond it
// they are placed one by one, evenly: so many hide how they cluster.
const maxScatter = 1 << 22

// scatter places the n arrivals of a cell, in reverse order, by halving it as
// long as two of them are together and the split says more than chance.
func (p *pacer) scatter(from, to float64, n int, split []float64) {
	switch {
	case n == 0:
		return
	case n == 1 || len(split) == 0 || p.t >= p.limit:
		at := len(p.times)
		for range n {
			p.times = append(p.times, from+(to-from)*p.s.uniform())
		}
		if n > 1 {
			slices.Sort(p.times[at:])
			slices.Reverse(p.times[at:])
		}
		return
	}
	mid := (from + to) / 2
	left := p.half(n, split[0])
	p.scatter(mid, to, n-left, split[1:])
	p.scatter(from, mid, left, split[1:])
}

// half is how many of n fall into the first half: beta-binomial, as in the
// cascades of Riedi, Crouse, Ribeiro and Baraniuk (IEEE Trans. Inf. Theory 45(3), 1999).
func (p *pacer) half(n int, correlation float64) int {
	share := 0.5
	if correlation > 0 {
		a := (1/correlation - 1) / 2
		x := p.s.gamma(a)
		y := p.s.gamma(a)
		if x+y > 0 {
			share = x / (x + y)
		} else if p.s.uniform() < 0.5 {
			share = 1 // both too small to tell apart
		} else {
			share = 0
		}
	}
	if n > 1000 {
		mean := float64(n) * share
		return max(0, min(n, int(math.Round(mean+math.Sqrt(mean*(1-share))*p.s.normal()))))
	}
	return p.s.binomial(n, share)
}

// maxSilent is after how many windows without an arrival a client is taken to
// have gone for good: years of them, and seconds of work.
const maxSilent = 1 << 27

// silent says whether a client never makes a request.
func (c *Client) silent() bool {
	if c.Weight == 0 {
		return true
	}
	switch a := &c.Arrivals; a.Kind {
	case ArrivalsProfile:
		for _, s := range a.Profile.Spans {
			for _, r := range s.Rates {
				if r > 0 {
					return false
				}
			}
		}
		return a.Profile.Beyond != OrderRows
	case ArrivalsMMPP:
		mean := 0.0
		for i, p := range a.States.stationary() {
			mean += p * a.States.Rates[i]
		}
		return mean < 1e-12
	case ArrivalsRows:
		return false
	default:
		return a.Rate == 0
	}
}

// arrival returns the next arrival and the lengths of its window; ok is false
// at the limit.
func (p *pacer) arrival() (t float64, window *windowLengths, ok bool) {
	need := -1.0
	for silent := 0; p.t < p.limit && silent < maxSilent; silent++ {
		if p.piece.count >= 0 {
			if n := len(p.times); n > 0 {
				p.t = p.times[n-1]
				p.times = p.times[:n-1]
				p.left--
				return p.t, p.piece.lengths, p.t < p.limit
			}
			if p.left > 0 {
				// The least of so many uniform times that are left.
				p.t += (p.piece.end - p.t) * -math.Expm1(-p.s.exp()/float64(p.left))
				p.left--
				return p.t, p.piece.lengths, p.t < p.limit
			}
		} else {
			if need < 0 {
				need = p.gap(p.s)
			}
			if room := p.piece.rate * (p.piece.end - p.t); room >= need && p.piece.rate > 0 {
				p.t += need / p.piece.rate
				return p.t, p.piece.lengths, p.t < p.limit
			} else if p.piece.rate > 0 {
				need -= room
			}
		}
		if math.IsInf(p.piece.end, 1) {
			return 0, nil, false
		}
		p.enter(p.piece.end)
	}
	return 0, nil, false
}

// windowLengths is how lengths are drawn in one window or state.
type windowLengths struct {
	in   alias   // over the bins of the input
	urn  *urn    // deals these bins instead, where a window has exact counts
	rows []alias // output bin given input bin; nil: the client's own
	// power that levels are raised to, 0 as 1.
	power float64
}
