package search

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/traceformat"
)

// A Measured is what a run showed.
type Measured struct {
	Requests int64 `json:"requests"` // in the judged part: hang-ups of recorded users and what a stop cut off left out
	OK       int64 `json:"requests_ok"`
	Cut      int64 `json:"requests_cut,omitempty"` // in flight when the run was stopped
	// From and To bound the part of the run in which the system is neither
	// filling nor emptying; rates are of it.
	From         time.Duration `json:"steady_from_ns"`
	To           time.Duration `json:"steady_to_ns"`
	Offered      float64       `json:"requests_per_second_offered"`
	Completed    float64       `json:"requests_per_second_completed"`
	OutputTokens float64       `json:"output_tokens_per_second"`
	InFlight     float64       `json:"in_flight_mean"`

	TTFT Quantiles `json:"ttft_ns"` // of successes, from the schedule, as all here
	TPOT Quantiles `json:"tpot_ns"`
	E2E  Quantiles `json:"e2e_ns"`
	// E2EMean is what Little's law and power speak of.
	E2EMean metrics.Nanos `json:"e2e_ns_mean"`

	Objectives []Judged  `json:"objectives"`
	Overload   *Overload `json:"overload,omitempty"`
	// Lagging says that completions fell behind arrivals, by no more than chance
	// may explain.
	Lagging bool `json:"lagging,omitempty"`
}

// Quantiles are some of a latency, NaN where nothing was measured: in JSON they
// are left out.
type Quantiles struct {
	P50 traceformat.Opt[metrics.Nanos] `json:"p50,omitzero"`
	P95 traceformat.Opt[metrics.Nanos] `json:"p95,omitzero"`
	P99 traceformat.Opt[metrics.Nanos] `json:"p99,omitzero"`
}

// A How says how the rows of a run are to be read.
type How struct {
	Objectives []metrics.Objective
	Confidence float64
	Kind       Kind
	Closed     bool          // a closed loop: users wait for answers, and no queue grows
	Planned    int64         // requests of the run
	Laps       int           // that they are of one trace
	Warmup     time.Duration // rows scheduled before it are not judged, run time
	// Stopped says that the run was stopped as hopeless: requests that it did not
	// come to are taken to have met every SLO.
	Stopped bool
}

// warmup is until when requests are not judged. The users of a closed loop begin
// all at once, which they never do again: their first requests are not.
func warmup(asked time.Duration, closed bool) time.Duration {
	if closed {
		return max(asked, 1)
	}
	return asked
}

type span struct {
	sent, first, last, end float64 // s
	tokens                 float64
	ok                     bool
}

// Measure reads the rows of a run.
func Measure(rows iter.Seq2[*traceformat.Row, error], how How) (*Measured, error) {
	m := &Measured{}
	warm := how.Warmup
	if how.Kind != Floor && how.Kind != Burst {
		warm = warmup(how.Warmup, how.Closed)
	}
	t := newTally(how.Objectives, how.Planned, how.Laps)
	values := make([][]float64, len(how.Objectives))
	var ttft, tpot, e2e []float64
	var spans []span
	for row, err := range rows {
		if err != nil {
			return nil, err
		}
		r := metrics.Measure(row)
		if r.Sent.OK && r.Class != metrics.Shed {
			spans = append(spans, spanOf(&r))
		}
		if r.Zero < warm {
			t.planned = max(1, t.planned-1)
			continue
		}
		t.add(&r)
		if !judgeable(&r) {
			if r.Class == metrics.Failed {
				m.Cut++
			}
			continue
		}
		m.Requests++
		if r.Class != metrics.OK {
			for i := range values {
				values[i] = append(values[i], math.Inf(1))
			}
			continue
		}
		m.OK++
		for i, o := range how.Objectives {
			v := math.Inf(1)
			if d := r.Latency(o.Metric); d.OK {
				v = float64(d.V)
			}
			values[i] = append(values[i], v)
		}
		for _, f := range []struct {
			of  *[]float64
			got traceformat.Opt[time.Duration]
		}{{&ttft, r.FromSchedule(r.TTFT)}, {&tpot, r.TPOT}, {&e2e, r.FromSchedule(r.E2E)}} {
			if f.got.OK {
				*f.of = append(*f.of, float64(f.got.V))
			}
		}
	}
	if len(spans) == 0 {
		return nil, fmt.Errorf("no request of the run was sent")
	}
	m.Objectives = t.judge(how.Confidence, how.Stopped)
	for i := range m.Objectives {
		slices.Sort(values[i])
		if q := stats.Quantile(values[i], how.Objectives[i].Share); !math.IsNaN(q) {
			m.Objectives[i].Value = traceformat.Some(metrics.Nanos(q))
		}
	}
	m.TTFT, m.TPOT, m.E2E = quantiles(ttft), quantiles(tpot), quantiles(e2e)
	for _, v := range e2e {
		m.E2EMean += metrics.Nanos(v / float64(len(e2e)))
	}
	m.steady(spans, how)
	if !how.Closed && (how.Kind == Probe || how.Kind == Curve || how.Kind == Confirm) {
		o, sure := detect(samples(spans))
		if sure {
			m.Overload = o
		}
		m.Lagging = o != nil && !sure
	}
	return m, nil
}

func quantiles(v []float64) (q Quantiles) {
	slices.Sort(v)
	for _, f := range []struct {
		to *traceformat.Opt[metrics.Nanos]
		p  float64
	}{{&q.P50, 0.5}, {&q.P95, 0.95}, {&q.P99, 0.99}} {
		if x := stats.Quantile(v, f.p); !math.IsNaN(x) {
			*f.to = traceformat.Some(metrics.Nanos(x))
		}
	}
	return q
}

func spanOf(r *metrics.Reading) span {
	s := span{sent: r.Sent.V.Seconds(), tokens: float64(r.OutputTokens.Or(0)), ok: r.Class == metrics.OK}
	s.end = r.End.Or(1 << 60).Seconds()
	s.last = s.end
	if r.E2E.OK {
		s.last = (r.Sent.V + r.E2E.V).Seconds()
	}
	s.first = s.last
	if r.TTFT.OK {
		s.first = (r.Sent.V + r.TTFT.V).Seconds()
	}
	return s
}

// steady finds the part of the run between filling and emptying, and its rates.
func (m *Measured) steady(spans []span, how How) {
	var last, queued, end float64
	for _, s := range spans {
		last = max(last, s.sent)
		if s.ok {
			queued, end = max(queued, s.first), max(end, s.last)
		}
	}
	from, to := min(float64(m.E2E.P50.V)/1e9, last/4), last
	switch how.Kind {
	case Floor:
		from, to = 0, end
	case Burst:
		// While something waits, nothing is idle.
		from, to = 0, queued
	}
	if !(to > from) {
		return
	}
	length := to - from
	for _, s := range spans {
		if s.sent >= from && s.sent <= to {
			m.Offered += 1 / length
		}
		m.InFlight += max(0, min(s.end, to)-max(s.sent, from)) / length
		if s.ok && s.end > from && s.end <= to {
			m.Completed += 1 / length
		}
		if s.ok {
			share := 0.0 // of its tokens inside, as if they came evenly
			if s.last > s.first {
				share = max(0, min(s.last, to)-max(s.first, from)) / (s.last - s.first)
			} else if s.last > from && s.last <= to {
				share = 1
			}
			m.OutputTokens += share * s.tokens / length
		}
	}
	if how.Kind == Burst && m.OK > 0 {
		// Answers end in waves where they are of like length; their tokens do not.
		var tokens float64
		for _, s := range spans {
			if s.ok {
				tokens += s.tokens
			}
		}
		all := float64(m.OK) / end
		m.Completed = max(all, m.OutputTokens/(tokens/float64(m.OK)))
		m.OutputTokens = m.Completed * tokens / float64(m.OK)
	}
	m.From, m.To = time.Duration(from*1e9), time.Duration(to*1e9)
}

// gridSize is the number of moments at which a finished run is looked at.
const gridSize = 200

// samples are the states of a run at even moments until its last send.
func samples(spans []span) []Sample {
	var sent, ends []float64
	for _, s := range spans {
		sent, ends = append(sent, s.sent), append(ends, s.end)
	}
	slices.Sort(sent)
	slices.Sort(ends)
	last := sent[len(sent)-1]
	out := make([]Sample, gridSize)
	i, k := 0, 0
	for g := range out {
		at := last * float64(g+1) / gridSize
		for i < len(sent) && sent[i] <= at {
			i++
		}
		for k < len(ends) && ends[k] <= at {
			k++
		}
		out[g] = Sample{At: at, Sent: int64(i), InFlight: int64(i - k)}
	}
	return out
}
