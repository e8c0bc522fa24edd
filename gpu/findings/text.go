package findings

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"reprise/internal/units"
)

// Render writes r as lines of a summary, an item a line where they do not fit
// into width together.
func (r *Record) Render(w io.Writer, width int) error {
	if r == nil {
		return nil
	}
	var b strings.Builder
	line := func(label string, items ...string) {
		items = slices.DeleteFunc(items, func(s string) bool { return s == "" })
		if len(items) == 0 {
			return
		}
		sep := "   "
		if text := strings.Join(items, sep); 12+utf8.RuneCountInString(text) > width {
			sep = "\n            "
		}
		fmt.Fprintf(&b, "%-12s%s\n", label, strings.Join(items, sep))
	}
	var sources []string
	for _, s := range r.Sources {
		text := fmt.Sprintf("%s %s readings", s.Name, units.Count(s.Readings))
		switch {
		case s.Readings == 0:
			text = s.Name + " none"
		case s.Gaps == 1:
			text += fmt.Sprintf(", a gap of %s", units.Duration(s.GapTime))
		case s.Gaps > 1:
			text += fmt.Sprintf(", %s gaps of %s in all", units.Count(s.Gaps), units.Duration(s.GapTime))
		}
		sources = append(sources, text)
	}
	line("telemetry", sources...)
	if r.From != "" {
		line("  from", r.From)
	}
	r.renderEngine(line)
	r.renderGPUs(line)
	switch e := r.Environment; e.Verdict {
	case Disturbed:
		line("  host", append([]string{"DISTURBED"}, e.Reasons...)...)
	case Undisturbed:
		line("  host", "undisturbed")
	}
	for _, n := range slices.Concat(r.Environment.Warnings, r.Warnings, r.Notes) {
		line("  note", n)
	}
	if b.Len() == 0 {
		return nil
	}
	_, err := io.WriteString(w, "\n"+b.String())
	return err
}

func (r *Record) renderEngine(line func(string, ...string)) {
	if e := r.Engine; e != nil {
		load := ""
		if e.Running != nil {
			load = fmt.Sprintf("%s running (%s at most)", units.Digits(e.Running.Mean), units.Digits(e.Running.Max))
		}
		if e.Waiting != nil {
			load += fmt.Sprintf(", %s waiting (%s)", units.Digits(e.Waiting.Mean), units.Digits(e.Waiting.Max))
		}
		preempted, several, restarts := "", "", ""
		if e.Preemptions.OK {
			preempted = units.Count(e.Preemptions.V) + " preemptions"
		}
		if e.Engines > 1 {
			several = fmt.Sprintf("%d engines", e.Engines)
		}
		if e.Restarts > 0 {
			restarts = "restarted during the run"
		}
		line("  engine", load, preempted, several, restarts)
	}
	if k := r.KV; k != nil {
		usage, growth := "", ""
		if k.Usage != nil {
			usage = fmt.Sprintf("%s full (%s at most)", units.Percent(k.Usage.Mean), units.Percent(k.Usage.Max))
			if k.Capacity.OK {
				usage += fmt.Sprintf(" of %s tokens", units.Count(int64(k.Capacity.V)))
			}
		}
		if k.PerResident.OK {
			growth = fmt.Sprintf("%.3g held for a token in flight (R² %.2f)", k.PerResident.V, k.R2.V)
		}
		line("  KV cache", usage, growth)
	}
	if p := r.Prefix; p != nil {
		implied := ""
		if p.Implied.OK {
			implied = fmt.Sprintf("%s implied by the trace, %s", units.Percent(p.Implied.V), units.Points(p.Difference.V))
		}
		line("  prefixes", units.Percent(p.Hit)+" hit by its counters", implied)
	}
	if l := r.Little; l != nil {
		line("  in flight", fmt.Sprintf("%s in the engine", units.Digits(l.Engine)), fmt.Sprintf("%s from here", units.Digits(l.Client)),
			fmt.Sprintf("%s x %s = %s", units.Rate(l.Rate), units.Duration(seconds(l.Stay)), units.Digits(l.Law)))
	}
	if c := r.Clocks; c != nil {
		for _, m := range []struct {
			name string
			d    *Disagreement
		}{{"TTFT", c.TTFT}, {"E2E", c.E2E}} {
			if m.d != nil {
				line("  clocks", fmt.Sprintf("our %s less the engine's: p50 %s, p99 %s over %s requests", m.name, sign(m.d.P50), sign(m.d.P99), units.Count(m.d.N)))
			}
		}
		for _, s := range c.Sums {
			counts := ""
			if s.OursN != s.EngineN {
				counts = fmt.Sprintf(" (%s and %s values)", units.Count(s.OursN), units.Count(s.EngineN))
			}
			line("  by sums", fmt.Sprintf("mean %s %s here, %s there%s: %s", strings.ToUpper(s.Metric), units.Duration(s.Ours), units.Duration(s.Engine), counts, sign(s.Difference)))
		}
	}
}

func seconds(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }

// sign prints a difference of times with its sign.
func sign(d time.Duration) string {
	if d < 0 {
		return "-" + units.Duration(-d)
	}
	return "+" + units.Duration(d)
}

func (r *Record) renderGPUs(line func(string, ...string)) {
	if e := r.Energy; e != nil {
		token, request := "", ""
		if e.PerOutputToken.OK {
			token = units.Digits(e.PerOutputToken.V) + " J/output token"
		}
		if e.PerRequest.OK {
			request = units.Digits(e.PerRequest.V) + " J/request"
		}
		line("  energy", token, request, fmt.Sprintf("%s J at %s W", units.Digits(e.Joules), units.Digits(e.Watts)))
	}
	for _, g := range r.GPUs {
		var items []string
		if g.Utilization != nil {
			items = append(items, units.Percent(g.Utilization.Mean)+" busy")
		}
		if g.Power != nil {
			items = append(items, units.Digits(g.Power.Mean)+" W")
		}
		if g.Memory != nil {
			text := units.Bytes(int64(g.Memory.Max))
			if g.Headroom.OK {
				text += fmt.Sprintf(", %s left", units.Bytes(int64(g.Headroom.V)))
			}
			items = append(items, text)
		}
		if g.Temperature != nil {
			items = append(items, fmt.Sprintf("%.0f °C", g.Temperature.Max))
		}
		for _, why := range slices.Sorted(maps.Keys(g.Throttled)) {
			items = append(items, fmt.Sprintf("throttled %s by %s", units.Duration(seconds(g.Throttled[why])), strings.ReplaceAll(why, "_", " ")))
		}
		line("  "+g.Device, items...)
	}
}
