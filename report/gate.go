package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/internal/units"
)

// A Gate is a condition under which a comparison fails: "ttft.p99 > +5%" says
// that B is more than 5 % above A, "error_rate > 0.1%" and "e2e.p50 > 2s" bound
// B itself. It fails when the whole interval lies beyond the limit, and never
// on a point estimate.
//
// Among several sides a gate is for each that is held against the first, and
// "sglang: ttft.p99 > +5%" for that one.
type Gate struct {
	Expr     string
	Side     string // that it is for; empty for all
	Metric   string
	Above    bool // fails above the limit, otherwise below it
	Relative bool // of B against A, in place of B itself
	Limit    float64
}

// ParseGate reads "METRIC > LIMIT" or "METRIC < LIMIT". A limit with a sign and
// a percent sign is relative to A; without a sign it is a duration, a share or a
// plain number.
func ParseGate(expr string) (Gate, error) {
	g := Gate{Expr: strings.TrimSpace(expr)}
	i := strings.LastIndexAny(g.Expr, "<>")
	bad := func(why string) (Gate, error) {
		return Gate{}, fmt.Errorf("%q: %s; write 'ttft.p99 > +5%%' (B against A), 'error_rate > 0.1%%' or 'goodput < 20' (B itself)", expr, why)
	}
	if i < 0 {
		return bad("has neither < nor >")
	}
	g.Metric, g.Above = strings.TrimSpace(g.Expr[:i]), g.Expr[i] == '>'
	if k := strings.LastIndexByte(g.Metric, ':'); k >= 0 {
		g.Side, g.Metric = strings.TrimSpace(g.Metric[:k]), strings.TrimSpace(g.Metric[k+1:])
		if g.Side == "" {
			return bad("names no side before the colon")
		}
	}
	limit := strings.TrimSpace(strings.TrimPrefix(g.Expr[i+1:], "="))
	if g.Metric == "" || limit == "" {
		return bad("lacks a metric or a limit")
	}
	signed := limit[0] == '+' || limit[0] == '-'
	if share, ok := strings.CutSuffix(limit, "%"); ok {
		v, err := strconv.ParseFloat(strings.TrimSpace(share), 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return bad("has no number before %")
		}
		g.Limit, g.Relative = v/100, signed
		return g, nil
	}
	if signed {
		return bad("has a sign and no %")
	}
	if v, err := strconv.ParseFloat(limit, 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
		g.Limit = v
		return g, nil
	}
	d, err := time.ParseDuration(limit)
	if err != nil {
		return bad("has a limit that is no number, share or time")
	}
	g.Limit = float64(d)
	return g, nil
}

// A Check is what became of one gate.
type Check struct {
	Gate    string `json:"gate"`
	Side    string `json:"side,omitempty"` // that was judged, where there are several
	Failed  bool   `json:"failed"`
	Unknown bool   `json:"unknown,omitempty"` // there is no interval to judge by
	Text    string `json:"text"`
}

// Title is the gate with the side that was judged.
func (k *Check) Title() string {
	if k.Side == "" || strings.HasPrefix(k.Gate, k.Side+":") {
		return k.Gate
	}
	return k.Side + ": " + k.Gate
}

// Check judges the gates. A metric that the comparison does not have is an
// error: a gate with a typing mistake must not pass. A latency that no request
// has on both sides is unknown.
func (c *Comparison) Check(gates []Gate) ([]Check, error) {
	out, err := checkAll(gates, c)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// checkAll judges the gates of each comparison.
func checkAll(gates []Gate, cs ...*Comparison) ([][]Check, error) {
	out := make([][]Check, len(cs))
	for _, g := range gates {
		sided, known := false, false
		for i, c := range cs {
			if g.Side != "" && g.Side != c.B.Name {
				continue
			}
			sided = true
			k := Check{Gate: g.Expr, Unknown: true, Text: "cannot be judged: no request has this figure on both sides"}
			if m := c.metric(g.Metric); m != nil {
				k, known = g.check(m), true
			}
			if len(cs) > 1 {
				k.Side = c.B.Name
			}
			out[i] = append(out[i], k)
		}
		if !sided {
			var names []string
			for _, c := range cs {
				names = append(names, c.B.Name)
			}
			return nil, fmt.Errorf("%q: no side %q is held against %s; there are %s", g.Expr, g.Side, cs[0].A.Name, strings.Join(names, ", "))
		}
		if !known && !isLatency(g.Metric) {
			var names []string
			for _, c := range cs {
				for i := range c.Metrics {
					if !slices.Contains(names, c.Metrics[i].Name) {
						names = append(names, c.Metrics[i].Name)
					}
				}
			}
			return nil, fmt.Errorf("no metric %q in this comparison; there are %s", g.Metric, strings.Join(names, ", "))
		}
	}
	return out, nil
}

// isLatency says whether a comparison has this metric wherever requests succeed
// on both sides.
func isLatency(name string) bool {
	base, stat, _ := strings.Cut(name, ".")
	return (base == "itl" || slices.ContainsFunc(latencies, func(f figure) bool { return f.name == base })) &&
		slices.ContainsFunc(compared, func(c struct {
			name  string
			level float64
		}) bool {
			return c.name == stat
		})
}

func (c *Comparison) metric(name string) *Metric {
	for i := range c.Metrics {
		if c.Metrics[i].Name == name {
			return &c.Metrics[i]
		}
	}
	return nil
}

func (g *Gate) check(m *Metric) Check {
	v, show := m.B, func(x float64) string { return m.format(x) }
	if g.Relative {
		v, show = m.Rel, signedPercent
	}
	k := Check{Gate: g.Expr}
	if !v.Lo.OK || !v.Hi.OK {
		k.Unknown = true
		k.Text = "cannot be judged: " + m.Why
		if m.Why == "" {
			k.Text = "cannot be judged: there is no interval"
		}
		if v.V.OK {
			k.Text = show(v.V.V) + "; " + k.Text
		}
		return k
	}
	k.Failed = g.Above && v.Lo.V > g.Limit || !g.Above && v.Hi.V < g.Limit
	k.Text = fmt.Sprintf("%s, 95 %% interval %s to %s", show(v.V.V), show(v.Lo.V), show(v.Hi.V))
	return k
}

func signedPercent(x float64) string {
	if x >= 0 {
		return "+" + units.Percent(x)
	}
	return "-" + units.Percent(-x)
}

// mark says in a word what became of a gate.
func (k *Check) mark(failed string) string {
	switch {
	case k.Failed:
		return failed
	case k.Unknown:
		return "unknown"
	}
	return "pass"
}

// RenderChecks writes checks for a terminal, a line each.
func RenderChecks(w io.Writer, checks []Check) error {
	for i := range checks {
		k := &checks[i]
		if _, err := fmt.Fprintf(w, "%s  %s: %s\n", k.mark("FAIL"), k.Title(), k.Text); err != nil {
			return err
		}
	}
	return nil
}

// WriteJUnit writes checks in the form that CI servers read: a test case a gate.
func WriteJUnit(w io.Writer, checks []Check) error {
	type message struct {
		Message string `xml:"message,attr"`
	}
	type testcase struct {
		Name    string   `xml:"name,attr"`
		Class   string   `xml:"classname,attr"`
		Failure *message `xml:"failure,omitempty"`
		Skipped *message `xml:"skipped,omitempty"`
		Out     string   `xml:"system-out,omitempty"`
	}
	type suite struct {
		XMLName  xml.Name   `xml:"testsuite"`
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Skipped  int        `xml:"skipped,attr"`
		Cases    []testcase `xml:"testcase"`
	}
	s := suite{Name: "report compare", Tests: len(checks)}
	for _, c := range checks {
		t := testcase{Name: c.Title(), Class: "reprise"}
		switch {
		case c.Failed:
			s.Failures++
			t.Failure = &message{c.Text}
		case c.Unknown:
			s.Skipped++
			t.Skipped = &message{c.Text}
		default:
			t.Out = c.Text
		}
		s.Cases = append(s.Cases, t)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}
