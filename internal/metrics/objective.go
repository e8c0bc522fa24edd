package metrics

import (
	"fmt"
	"strconv"
	"strings"
)

// An Objective is what a load must keep: a share of the requests meets an SLO.
type Objective struct {
	SLO
	Share float64 // of the requests, more than 0 and less than 1
	// Percentile is the share in percent as it was written: "99.9". Empty where
	// the SLO was written without one.
	Percentile string
}

func (o Objective) String() string {
	if o.Percentile == "" {
		return fmt.Sprintf("%s for %s %%", o.SLO, strconv.FormatFloat(100*o.Share, 'g', 6, 64))
	}
	return o.Metric + ".p" + o.Percentile + "<" + o.Below.String()
}

// MarshalText writes the form that ParseObjectives reads.
func (o Objective) MarshalText() ([]byte, error) {
	p := o.Percentile
	if p == "" {
		p = strconv.FormatFloat(100*o.Share, 'g', 6, 64)
	}
	return []byte(o.Metric + ".p" + p + "<" + o.Below.String()), nil
}

// UnmarshalText reads "ttft.p99<500ms".
func (o *Objective) UnmarshalText(b []byte) (err error) {
	*o, err = parseObjective(string(b), 0)
	return err
}

// ParseObjectives reads "ttft.p99<500ms", which says that at least 99 % of the
// requests have a TTFT of less than that, and "ttft<500ms", which says so of
// share. One argument may hold several with commas between; two of one metric
// must speak of different shares.
func ParseObjectives(args []string, share float64) ([]Objective, error) {
	var out []Objective
	type key struct {
		metric string
		share  float64
	}
	seen := map[key]bool{}
	for _, arg := range args {
		for field := range strings.SplitSeq(arg, ",") {
			o, err := parseObjective(field, share)
			if err != nil {
				return nil, err
			}
			k := key{o.Metric, o.Share}
			if seen[k] {
				return nil, fmt.Errorf("two SLOs bound the same share of %s", o.Metric)
			}
			seen[k] = true
			out = append(out, o)
		}
	}
	return out, nil
}

func parseObjective(text string, share float64) (Objective, error) {
	metric, bound, ok := strings.Cut(text, "<")
	if !ok {
		return Objective{}, fmt.Errorf("SLO %q: want a metric, '<' and a duration, as in ttft.p99<500ms", text)
	}
	name, percentile, has := strings.Cut(strings.TrimSpace(metric), ".")
	o := Objective{Share: share}
	if has {
		digits, ok := strings.CutPrefix(strings.ToLower(percentile), "p")
		p, err := strconv.ParseFloat(digits, 64)
		if !ok || err != nil || !(p > 0 && p < 100) || strings.ContainsAny(digits, "+-eExX_") {
			return o, fmt.Errorf("SLO %q: %q is no percentile such as p99 or p99.9", text, percentile)
		}
		o.Share, o.Percentile = p/100, digits
		text = name + "<" + bound
	}
	if !(o.Share > 0 && o.Share < 1) {
		return o, fmt.Errorf("SLO %q: of which share of the requests? write %s.p99<%s", text, name, strings.TrimSpace(bound))
	}
	var err error
	o.SLO, err = parseSLO(text)
	return o, err
}
