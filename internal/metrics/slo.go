package metrics

import (
	"fmt"
	"strings"
	"time"
)

// What an SLO can bound.
const (
	MetricTTFT = "ttft"
	MetricTPOT = "tpot"
	MetricE2E  = "e2e"
)

// An SLO bounds one latency of each request, from the schedule.
type SLO struct {
	Metric string        // one of the Metric constants
	Below  time.Duration // met if the latency is less
}

func (s SLO) String() string { return s.Metric + "<" + s.Below.String() }

// MarshalText writes the form that ParseSLOs reads.
func (s SLO) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads "ttft<500ms".
func (s *SLO) UnmarshalText(b []byte) (err error) {
	*s, err = parseSLO(string(b))
	return err
}

// ParseSLOs reads bounds as "ttft<500ms", "tpot<50ms", "e2e<10s"; one argument
// may hold several with commas between. At most one per metric.
func ParseSLOs(args []string) ([]SLO, error) {
	var slos []SLO
	seen := map[string]bool{}
	for _, arg := range args {
		for field := range strings.SplitSeq(arg, ",") {
			s, err := parseSLO(field)
			if err != nil {
				return nil, err
			}
			if seen[s.Metric] {
				return nil, fmt.Errorf("two SLOs bound %s", s.Metric)
			}
			seen[s.Metric] = true
			slos = append(slos, s)
		}
	}
	return slos, nil
}

func parseSLO(text string) (SLO, error) {
	metric, bound, ok := strings.Cut(strings.TrimSpace(text), "<")
	if !ok {
		return SLO{}, fmt.Errorf("SLO %q: want a metric, '<' and a duration, as in ttft<500ms", text)
	}
	s := SLO{Metric: strings.ToLower(strings.TrimSpace(metric))}
	switch s.Metric {
	case MetricTTFT, MetricTPOT, MetricE2E:
	default:
		return SLO{}, fmt.Errorf("SLO %q: no metric %q; there are ttft, tpot and e2e, each bound for every request", text, strings.TrimSpace(metric))
	}
	var err error
	if s.Below, err = time.ParseDuration(strings.ReplaceAll(strings.TrimSpace(bound), " ", "")); err != nil {
		return SLO{}, fmt.Errorf("SLO %q: %q is no duration: write 500ms or 1.5s", text, strings.TrimSpace(bound))
	}
	if s.Below <= 0 {
		return SLO{}, fmt.Errorf("SLO %q: nothing takes less than %v", text, s.Below)
	}
	return s, nil
}
