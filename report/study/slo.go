package study

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"reprise/internal/metrics"
)

// An Objective bounds one latency: "ttft.p99<500ms" says that at least 99 % of
// the requests take less, a failed one being one that does not. "ttft<500ms"
// says which requests are good, and not how many must be.
type Objective struct {
	metrics.SLO
	// Share of the requests that must meet it; 0 says nothing.
	Share float64
}

func (o Objective) String() string {
	if o.Share == 0 {
		return o.SLO.String()
	}
	return fmt.Sprintf("%s.p%s<%s", o.Metric, strconv.FormatFloat(100*o.Share, 'f', -1, 64), o.Below)
}

// MarshalText writes the form that ParseObjectives reads.
func (o Objective) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads "ttft.p99<500ms".
func (o *Objective) UnmarshalText(b []byte) (err error) {
	*o, err = parseObjective(string(b))
	return err
}

// ParseObjectives reads bounds as "ttft.p99<500ms", "tpot<50ms"; one argument may
// hold several with commas between.
func ParseObjectives(args []string) (out []Objective, err error) {
	for _, arg := range args {
		for field := range strings.SplitSeq(arg, ",") {
			o, err := parseObjective(field)
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(out, func(x Objective) bool { return x.Metric == o.Metric && x.Share == o.Share }) {
				return nil, fmt.Errorf("two objectives bound %s", strings.SplitN(o.String(), "<", 2)[0])
			}
			out = append(out, o)
		}
	}
	return out, nil
}

func parseObjective(text string) (o Objective, err error) {
	text = strings.Replace(strings.TrimSpace(text), "<=", "<", 1)
	if name, _, ok := strings.Cut(text, "<"); ok && strings.Contains(name, ".") {
		all, err := metrics.ParseObjectives([]string{text}, 0)
		if err != nil {
			return o, err
		}
		return Objective{all[0].SLO, all[0].Share}, nil
	}
	slos, err := metrics.ParseSLOs([]string{text})
	if err != nil {
		return o, err
	}
	return Objective{SLO: slos[0]}, nil
}

// perRequest are the bounds that make a request good: of each metric the widest,
// as a request beyond a median may still be one of the good ones.
func perRequest(all []Objective) (out []metrics.SLO) {
	for _, o := range all {
		i := slices.IndexFunc(out, func(s metrics.SLO) bool { return s.Metric == o.Metric })
		switch {
		case i < 0:
			out = append(out, o.SLO)
		case o.Below > out[i].Below:
			out[i] = o.SLO
		}
	}
	return out
}
