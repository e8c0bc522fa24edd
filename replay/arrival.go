package replay

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

// An Arrival replaces the recorded arrivals by a process: the requests of the
// trace, in its order, at times that follow Stages. The zero Arrival keeps the
// recorded times.
type Arrival struct {
	Kind   string  `json:"kind,omitempty"` // "constant", "poisson" or "gamma"
	CV     float64 `json:"cv,omitempty"`   // of gamma: standard deviation of a gap over its mean
	Stages []Stage `json:"stages,omitempty"`
}

// A Stage is a stretch of time with a rate, constant or linear from From to To.
type Stage struct {
	From float64       `json:"from_per_second"`
	To   float64       `json:"to_per_second"`
	For  time.Duration `json:"for_ns"` // 0: without end, in the last stage alone
}

// ParseArrival reads --arrival ("constant", "poisson", "gamma:cv=2") and
// --rate ("20", or stages "5:30s,5..40:2m,40:1m").
func ParseArrival(process, rate string) (Arrival, error) {
	if process == "" && rate == "" {
		return Arrival{}, nil
	}
	if rate == "" {
		return Arrival{}, fmt.Errorf("--arrival %s needs --rate, in requests a second", process)
	}
	kind, param, hasParam := strings.Cut(process, ":")
	a := Arrival{Kind: kind}
	switch {
	case kind == "":
		a.Kind = "poisson"
	case kind == "gamma":
		cv, ok := strings.CutPrefix(param, "cv=")
		v, err := strconv.ParseFloat(cv, 64)
		if !ok || err != nil || !(v > 0) || v > 100 {
			return Arrival{}, fmt.Errorf("--arrival %q: want gamma:cv=N with N between 0 and 100", process)
		}
		a.CV = v
	case kind != "constant" && kind != "poisson" || hasParam:
		return Arrival{}, fmt.Errorf("--arrival is %q, want constant, poisson or gamma:cv=N", process)
	}
	for part := range strings.SplitSeq(rate, ",") {
		s, err := parseStage(part)
		if err != nil {
			return Arrival{}, err
		}
		if n := len(a.Stages); n > 0 && a.Stages[n-1].For == 0 {
			return Arrival{}, fmt.Errorf("--rate %q: only the last stage may go without a duration", rate)
		}
		a.Stages = append(a.Stages, s)
	}
	if last := a.Stages[len(a.Stages)-1]; last.For == 0 && last.From != last.To {
		return Arrival{}, fmt.Errorf("--rate %q: a ramp needs a duration, such as %v..%v:1m", rate, last.From, last.To)
	}
	return a, nil
}

func parseStage(s string) (Stage, error) {
	rate, length, hasLength := strings.Cut(strings.TrimSpace(s), ":")
	from, to, ramp := strings.Cut(rate, "..")
	if !ramp {
		to = from
	}
	var st Stage
	var err1, err2, err3 error
	st.From, err1 = strconv.ParseFloat(from, 64)
	st.To, err2 = strconv.ParseFloat(to, 64)
	if hasLength {
		st.For, err3 = time.ParseDuration(length)
	}
	const most = 1e7
	if err1 != nil || err2 != nil || err3 != nil || hasLength && st.For <= 0 ||
		!(st.From >= 0 && st.From <= most && st.To >= 0 && st.To <= most) || st.From+st.To == 0 {
		return Stage{}, fmt.Errorf("--rate stage %q: want N, N:DURATION or N..M:DURATION in requests a second", s)
	}
	return st, nil
}

// IsSet reports whether the arrivals are other than recorded.
func (a *Arrival) IsSet() bool { return a.Kind != "" }

// times yields the arrivals, from the start of the run. They come from a
// renewal process of unit rate, stretched so that the rate at each moment is
// the stage's: with Λ(t) the expected number of arrivals until t, an arrival
// of the unit process at u becomes one at Λ⁻¹(u).
func (a *Arrival) times(seed uint64) iter.Seq[time.Duration] {
	return func(yield func(time.Duration) bool) {
		src := rand.NewPCG(seed, 0x617272697661)
		rng := rand.New(src)
		shape := 1 / (a.CV * a.CV)
		gamma := distuv.Gamma{Alpha: shape, Beta: shape, Src: src} // mean 1
		u := 0.0
		stage, begin, counted := 0, 0.0, 0.0 // counted is Λ(begin)
		for {
			switch a.Kind {
			case "constant":
				u++
			case "poisson":
				u += rng.ExpFloat64()
			case "gamma":
				u += gamma.Rand()
			}
			for {
				if stage == len(a.Stages) {
					return
				}
				s := a.Stages[stage]
				length := s.For.Seconds()
				n := length * (s.From + s.To) / 2
				if s.For == 0 || u-counted < n {
					break
				}
				stage++
				begin, counted = begin+length, counted+n
			}
			t := begin + a.Stages[stage].invert(u-counted)
			if t > math.MaxInt64/2e9 || !yield(time.Duration(math.Round(t*1e9))) {
				return
			}
		}
	}
}

// invert is the time into the stage at which n arrivals are expected.
func (s Stage) invert(n float64) float64 {
	if n <= 0 {
		return 0
	}
	if s.From == s.To {
		return n / s.From
	}
	// From·t + slope/2·t² = n, in the form that is exact for small slopes.
	slope := (s.To - s.From) / s.For.Seconds()
	return 2 * n / (s.From + math.Sqrt(max(0, s.From*s.From+2*slope*n)))
}

// A share is one of the traces that --scale-rate superposes: the whole trace,
// begun at a random point and continued at its beginning, so that its bursts
// meet the others' at random. The last one may be thinned to some sessions.
type share struct {
	offset time.Duration // trace time
	keep   float64       // of the sessions
}

// shares splits a factor into copies. The first is the trace as it stands.
func shares(factor float64, lap time.Duration, seed uint64) []share {
	rng := rand.New(rand.NewPCG(seed, 0x7368617265))
	var out []share
	for left := factor; left > 1e-9; left-- {
		s := share{keep: min(1, left)}
		if len(out) > 0 {
			s.offset = time.Duration(rng.Int64N(int64(max(1, lap))))
		}
		out = append(out, s)
	}
	return out
}

// keeps decides by session, so that conversations stay whole.
func (s share) keeps(seed uint64, it *item) bool {
	if s.keep >= 1 {
		return true
	}
	key := mix(uint64(it.row.Session.Or(it.row.ID)), mix(seed, 0x6b656570))
	if !it.row.Session.OK {
		key = mix(key, tailKind)
	}
	return float64(key>>11)/(1<<53) < s.keep
}
