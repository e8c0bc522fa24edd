package html

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	iunits "reprise/internal/units"
	"reprise/report"
)

var names = map[string]string{
	"ttft": "TTFT", "e2e": "E2E", "tpot": "TPOT", "itl": "ITL",
	"error_rate": "Error rate", "slo_miss_rate": "SLO misses", "goodput": "Goodput",
	"output_tokens_per_second": "Output tokens/s", "requests_per_second": "Requests/s",
	"tokens_per_joule": "Tokens per joule", "joules_per_output_token": "Joules per token",
}

// heading writes the name of a metric for people: "TTFT p99".
func heading(metric string) string {
	base, stat, _ := strings.Cut(metric, ".")
	if n, ok := names[base]; ok {
		base = n
	} else {
		base = strings.ReplaceAll(base, "_", " ")
	}
	return strings.TrimSpace(base + " " + stat)
}

// units writes a duration for people.
func units(d time.Duration) string { return iunits.Duration(d) }

func sortKey(n report.Number) string {
	if !n.OK {
		return ""
	}
	return float(n.V)
}

func float(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return ""
	}
	return strconv.FormatFloat(v, 'g', 8, 64)
}

func text(s string) cell { return cell{Text: s} }

func count(n int64) cell { return cell{Text: iunits.Count(n), Sort: strconv.FormatInt(n, 10)} }

func verdictChip(v string) chip {
	switch v {
	case report.Better:
		return chip{"good", v}
	case report.Worse:
		return chip{"bad", v}
	}
	return chip{"plain", v}
}

// forest draws a ratio with its interval on a logarithmic scale, no difference
// in the middle and the factor most at either end.
func forest(rel report.Value, most float64, class string) template.HTML {
	if !rel.V.OK || !(most > 0) {
		return ""
	}
	at := func(x float64) string {
		return strconv.FormatFloat(60+min(max(math.Log1p(max(x, -0.999))/most, -1), 1)*56, 'f', 1, 64)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="forest %s" viewBox="0 0 120 14" aria-hidden="true"><line class="zero" x1="60" y1="0" x2="60" y2="14"/>`, class)
	if rel.Lo.OK && rel.Hi.OK {
		fmt.Fprintf(&b, `<line class="bar" x1="%s" y1="7" x2="%s" y2="7"/>`, at(rel.Lo.V), at(rel.Hi.V))
		fmt.Fprintf(&b, `<circle class="dot" cx="%s" cy="7" r="3.2"/></svg>`, at(rel.V.V))
	} else {
		fmt.Fprintf(&b, `<circle class="dot open" cx="%s" cy="7" r="2.7"/></svg>`, at(rel.V.V)) // there is no interval
	}
	return template.HTML(b.String())
}

// widest is the scale of a column of forests: the logarithm of the largest
// factor, of at most 100.
func widest(ms []report.Metric) (most float64) {
	for i := range ms {
		for _, n := range []report.Number{ms[i].Rel.V, ms[i].Rel.Lo, ms[i].Rel.Hi} {
			if n.OK {
				most = max(most, math.Abs(math.Log1p(max(n.V, -0.999))))
			}
		}
	}
	return min(most, math.Log(100))
}
