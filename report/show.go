package report

// A Shown is a Metric in the words and units of every rendering.
type Shown struct {
	A, B, Diff, Interval, Relative, P, Verdict string
}

// Show writes a metric for people; what is unknown is "-".
func (m *Metric) Show() Shown {
	return Shown{m.value(m.A.V), m.value(m.B.V), m.value(m.Diff.V), m.interval(m.Diff), m.relative(), pValue(m.PHolm), m.verdict()}
}

// Format writes a value in the metric's unit.
func (m *Metric) Format(v float64) string { return m.format(v) }

// Scope says what intervals and corrections are.
func (c *Comparison) Scope() string { return c.scope() }

// Withheld groups the reasons for which metrics have no interval.
func (c *Comparison) Withheld() []string { return c.withheld() }

// Describe says what a side is, in a line.
func (s *Subject) Describe() string { return s.describe() }

// DescribeWork says whether a pair of runs did the same, in a line.
func (c *Comparison) DescribeWork(pair int) string { return c.Work[pair].describe(pair, len(c.Work)) }

// Manifest is the run's, nil of a capture.
func (r *RunFact) Manifest() *Manifest { return r.manifest }

// Unequal says whether requests of the pair were not the same work.
func (w *Work) Unequal() bool { return w.Prompts+w.PromptTokens+w.OutputTokens > 0 }

// Fact is a run in short, as a comparison has it.
func (a *Analysis) Fact() RunFact {
	f := RunFact{Name: a.Name, State: a.State, Summary: a.Summary, manifest: a.Profile.Manifest}
	if m := f.manifest; m != nil {
		f.Backend, f.Digest = m.Server.Backend, m.Plan.Digest
	}
	return f
}
