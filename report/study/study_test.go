package study_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reprise/report"
	"reprise/report/study"
	"reprise/report/study/studytest"
)

var update = flag.Bool("update", false, "rewrite testdata")

func read(t testing.TB, e *studytest.Experiment, c study.Config) *study.Study {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	e.Write(t, dir)
	s, err := study.Read(t.Context(), dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// typical reads the folder of studytest.Typical, which is written once.
func typical(t *testing.T, c study.Config) *study.Study {
	t.Helper()
	typicalOnce.Do(func() { studytest.Typical().Write(t, typicalDir) })
	s, err := study.Read(t.Context(), typicalDir, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	typicalDir  string
	typicalOnce sync.Once
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "reprise-study-test-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	typicalDir = filepath.Join(dir, "out")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func cell(t *testing.T, s *study.Study, name string) *study.Cell {
	t.Helper()
	i := slices.IndexFunc(s.Cells, func(c study.Cell) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no cell %s", name)
	}
	return &s.Cells[i]
}

func TestGoldenMarkdown(t *testing.T) {
	s := typical(t, study.Config{Seed: 1})
	var b bytes.Buffer
	if err := s.WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/typical.md", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/typical.md")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("differs from testdata; look at it and run with -update:\n%s", d)
	}
}

// What does not count is listed with its reason, and is in no figure.
func TestWhatCounts(t *testing.T) {
	s := typical(t, study.Config{Seed: 1})
	why := map[string]string{}
	for _, x := range s.Runs {
		if !x.Counted {
			why[fmt.Sprintf("%s/%d", x.Cell, x.Repeat)] = x.Status + ": " + x.Why
		}
	}
	if d := cmp.Diff(map[string]string{
		"8-on-10/1": "invalid: the send error's p99 is 30 ms", "8-on-10/2": "partial: interrupted", "8-off-10/1": "unreadable: run.json is missing",
		"8-off-20/2": "failed: the engine died: out of memory", "512-on-40/0": "skipped: the KV cache is too small",
	}, why); d != "" {
		t.Error(d)
	}
	if !s.Invalid || !slices.Equal(s.Empty, []string{"max-num-seqs=512"}) {
		t.Errorf("invalid %v, empty %q", s.Invalid, s.Empty)
	}
	c := cell(t, s, "8-on-10")
	ttft := c.Figures["ttft.p50"]
	if c.Counted != 1 || c.Planned != 3 || ttft.Runs != 1 || ttft.How != study.WithinRuns || !ttft.Lo.OK || ttft.Lo.V >= ttft.V.V || ttft.Hi.V <= ttft.V.V {
		t.Errorf("%+v: %+v", c, ttft)
	}
	if e := c.Figures["output_tokens_per_second"]; e.Lo.OK || e.Why == "" {
		t.Errorf("a rate of one run: %+v", e)
	}
	c = cell(t, s, "64-on-10")
	if ttft := c.Figures["ttft.p50"]; ttft.Runs != 3 || ttft.How != study.OverRepeats {
		t.Errorf("three repeats: %+v", ttft)
	}
	// 20 output tokens a request, half the GPUs: prices follow from the rate.
	rate, price := c.Figures["output_tokens_per_second"].V.V, c.Figures["price_per_million_tokens"].V.V
	if want := 3.6 * 2 / (rate * 3600) * 1e6; price < want*0.999 || price > want*1.001 || c.Figures["tokens_per_joule"].V.V != 2 {
		t.Errorf("price %v, want %v; %v", price, want, c.Figures["tokens_per_joule"])
	}
	if c = cell(t, s, "512-on-40"); c.Counted != 0 || len(c.Figures) != 0 || c.Why != "skipped: the KV cache is too small" {
		t.Errorf("%+v", c)
	}
	if e := cell(t, s, "64-off-40").Figures["error_rate"]; e.V.V != 0.05 || e.Lo.V > 0.045 || e.Hi.V < 0.055 {
		t.Errorf("errors: %+v", e)
	}
}

// The effects that went in come out.
func TestEffects(t *testing.T) {
	s := typical(t, study.Config{Seed: 1})
	found := 0
	for _, e := range s.Effects {
		switch e.Measure + " " + e.Factor + "=" + e.Level {
		case "ttft.p50 caching=off":
			found++
			if e.Change.Lo.V > 1 || e.Change.Hi.V < 1 || e.Change.Hi.V-e.Change.Lo.V > 0.2 || e.Verdict != report.Worse {
				t.Errorf("%+v", e)
			}
		case "output_tokens_per_second rate=40":
			found++
			if e.Change.V.V < 2.8 || e.Verdict != report.Better {
				t.Errorf("%+v", e)
			}
		case "preemptions max-num-seqs=64":
			found++
			if e.Ratio || math.Abs(e.Change.V.V-3) > 1e-9 {
				t.Errorf("%+v", e)
			}
		}
	}
	if found != 3 {
		t.Errorf("found %d of the effects", found)
	}
	if !slices.ContainsFunc(s.Interactions, func(in study.Interaction) bool {
		return in.Measure == "ttft.p99" && in.A == "max-num-seqs" && in.B == "rate" && in.PHolm.V < 0.001
	}) {
		t.Errorf("the limit of 8 does not carry more than 10/s: %+v", s.Interactions)
	}
}

func TestRecommendation(t *testing.T) {
	slo := func(args ...string) study.Config {
		o, err := study.ParseObjectives(args)
		if err != nil {
			t.Fatal(err)
		}
		return study.Config{Seed: 1, Objectives: o}
	}
	// At 40/s only 64 sequences hold 250 ms; without caching 5 % fail.
	s := typical(t, slo("ttft.p99<250ms"))
	r := s.Recommendation
	if !r.Met || !r.Proven || r.Cell != "64-on-40" || r.Configuration != "max-num-seqs=64, caching=on" || r.Load != "at rate=40" || len(r.Alternatives) != 0 {
		t.Errorf("%+v", r)
	}
	for _, m := range cell(t, s, "64-off-40").Met {
		if m.Verdict != study.Missed || m.Share.V.V != 0.95 {
			t.Errorf("5 %% fail: %+v", m)
		}
	}
	// Nothing has 10 ms.
	r = typical(t, slo("ttft.p99<250ms,tpot.p50<1ms")).Recommendation
	if r.Met || r.Proven || r.Cell == "" || !strings.Contains(r.Text, "fails tpot.p50<1ms") || !strings.Contains(r.Text, "above the bound") || !slices.Contains(r.Reasons, "tpot.p50<1ms is met by 0 of 12 cells") {
		t.Errorf("%+v", r)
	}
	// A share that lies on the bound is not shown.
	r = typical(t, slo("ttft.p50<40ms")).Recommendation
	if r.Met || r.Proven {
		t.Errorf("on the bound: %+v", r)
	}
	// Configurations that do the same are alternatives.
	e := studytest.Typical()
	e.Row = func(c *studytest.Cell, repeat, i int, noise *rand.Rand) (time.Duration, time.Duration, bool) {
		return time.Duration(40e6 * (1 + 0.1*noise.Float64())), 8 * time.Millisecond, i%50 == 0
	}
	e.Manifest, e.State, e.Rows = nil, nil, 200
	r = read(t, e, slo("ttft.p95<250ms")).Recommendation
	if !r.Met || len(r.Alternatives) != 3 {
		t.Errorf("all alike: %+v", r)
	}
}

// An A/B of the first version has its backends for a factor.
func TestVersionOne(t *testing.T) {
	e := studytest.Typical()
	e.Plan = map[string]any{"version": 1, "trace": "conv.parquet"}
	e.Manifest, e.State = nil, nil
	e.Cells = e.Cells[:2]
	for i := range e.Cells {
		e.Cells[i].Factors = nil
	}
	e.Row = func(c *studytest.Cell, repeat, i int, noise *rand.Rand) (time.Duration, time.Duration, bool) {
		ms := 40 * (1 + 0.01*noise.Float64())
		if c.Name == "8-on-20" {
			ms *= 1.5
		}
		return time.Duration(ms * 1e6), 8 * time.Millisecond, false
	}
	s := read(t, e, study.Config{Seed: 1})
	if len(s.Factors) != 1 || s.Factors[0].Name != "backend" || s.Recommendation != nil {
		t.Errorf("%+v, %+v", s.Factors, s.Recommendation)
	}
	i := slices.IndexFunc(s.Effects, func(e study.Effect) bool { return e.Measure == "ttft.p50" })
	if e := s.Effects[i]; e.Level != "8-on-20" || e.Base != "8-on-10" || e.Change.Lo.V > 0.5 || e.Change.Hi.V < 0.5 || e.Verdict != report.Worse {
		t.Errorf("%+v", e)
	}
	if s.Title != "out" {
		t.Errorf("title %q", s.Title)
	}
}

// A simulated run says so, with the error of its fit.
func TestSimulated(t *testing.T) {
	e := studytest.Typical()
	e.Cells, e.Rows = e.Cells[:4], 100
	e.Manifest = func(c *studytest.Cell, repeat int, m map[string]any) bool {
		m["virtual"] = true
		m["server"].(map[string]any)["backend"] = "sim"
		m["sim_fit"] = map[string]any{"error": map[string]any{"ttft_p50": "+4.1 %", "e2e_p90": 0.07}, "run": "other"}
		return true
	}
	s := read(t, e, study.Config{Seed: 1})
	if !strings.Contains(s.Simulated, "virtual time") || len(s.SimFit) != 1 || s.SimFit[0].Error["error ttft p50"] != "+4.1 %" || s.SimFit[0].Error["error e2e p90"] != "0.0700" {
		t.Errorf("%q, %+v", s.Simulated, s.SimFit)
	}
	var page, md, text bytes.Buffer
	if err := s.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteMarkdown(&md); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for name, out := range map[string]string{"page": page.String(), "Markdown": md.String(), "text": text.String()} {
		if !strings.Contains(strings.ToLower(out), "simulated") || !strings.Contains(out, "error ttft p50 ") {
			t.Errorf("the %s does not say that it is simulated, or by what error", name)
		}
	}
}

// Names from files cannot become anything else, and the files of Write are whole.
func TestHostileNames(t *testing.T) {
	e := studytest.Typical()
	e.Rows = 40
	e.Plan["title"], e.Plan["question"], e.Plan["args"], e.Plan["notes"], e.Plan["trace"] = studytest.Evil, studytest.Evil, []string{studytest.Evil}, []string{studytest.Evil}, studytest.Evil
	e.Plan["factors"] = []map[string]any{{"name": studytest.Evil, "levels": []string{"8", studytest.Evil}, "unit": studytest.Evil}}
	for i := range e.Cells {
		c := &e.Cells[i]
		c.Factors = map[string]string{studytest.Evil: []string{"8", studytest.Evil, "<b>"}[i%3]}
		if c.Skip {
			c.Extra["skipped"] = studytest.Evil
		}
		c.Extra["options"] = []string{studytest.Evil}
	}
	state := e.State
	e.State = func(c *studytest.Cell, repeat int, s map[string]any) {
		if state(c, repeat, s); s["reason"] != nil {
			s["reason"] = studytest.Evil
		}
	}
	dir := t.TempDir()
	e.Write(t, dir)
	if _, err := study.Write(t.Context(), dir, study.Config{Seed: 1}); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, study.HTMLFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"<img", "<script>alert", "{{.}}<", "<b>", "http://", "https://"} {
		if strings.Contains(strings.ReplaceAll(string(page), "http://www.w3.org/2000/svg", ""), bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	md, err := os.ReadFile(filepath.Join(dir, study.MarkdownFile))
	if err != nil || strings.Contains(string(md), "<img") {
		t.Errorf("Markdown: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, study.JSONFile))
	if err != nil {
		t.Fatal(err)
	}
	var back study.Study
	if err := json.Unmarshal(b, &back); err != nil || back.Title != studytest.Evil || len(back.Cells) != 13 {
		t.Errorf("JSON: %v, %q, %d cells", err, back.Title, len(back.Cells))
	}
}

func TestBadFolders(t *testing.T) {
	write := func(plan string) string {
		dir := t.TempDir()
		if plan != "" {
			if err := os.WriteFile(filepath.Join(dir, "plan.json"), []byte(plan), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for name, c := range map[string]struct{ plan, want string }{
		"empty":        {"", "holds no experiment: it has no plan.json"},
		"cut":          {`{"version": 2,`, "plan.json: unexpected end"},
		"future":       {`{"version": 3, "cells": [{"name": "a"}]}`, "version 3, and this program reads 1 to 2"},
		"no cells":     {`{"version": 2}`, "it has no cells"},
		"a way out":    {`{"version": 2, "cells": [{"name": "../../etc"}]}`, "cannot name a cell"},
		"twice":        {`{"version": 2, "cells": [{"name": "a"}, {"name": "a"}]}`, "two cells are named a"},
		"unknown cell": {`{"version": 2, "cells": [{"name": "a"}], "runs": [{"number": 1, "cell": "b", "repeat": 1}]}`, "which is none of the plan"},
	} {
		if _, err := study.Read(t.Context(), write(c.plan), study.Config{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// A plan that nobody began is no error, and shows nothing.
	// An objective of the plan that cannot be held against requests is said.
	s, err := study.Read(t.Context(), write(`{"version": 2, "slos": ["itl.p99<50ms", "ttft.p99<=1s"], "repeats": 1, "cells": [{"name": "a"}], "runs": [{"number": 1, "cell": "a", "repeat": 1}]}`), study.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.WriteHTML(&b); err != nil || !strings.Contains(b.String(), "NOTHING TO SHOW") {
		t.Errorf("%v", err)
	}
	if len(s.Objectives) != 1 || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "itl.p99<50ms") {
		t.Errorf("objectives %v, warnings %q", s.Objectives, s.Warnings)
	}
}

func TestParseObjectives(t *testing.T) {
	o, err := study.ParseObjectives([]string{"ttft.p99.9<1s, tpot < 50 ms", "ttft.p50<200ms"})
	if err != nil || fmt.Sprint(o) != "[ttft.p99.9<1s tpot<50ms ttft.p50<200ms]" {
		t.Errorf("%v, %v", o, err)
	}
	for _, bad := range []string{"ttft", "ttft.99<1s", "ttft.p0<1s", "ttft.p100<1s", "itl.p99<1s", "ttft.p99<0s", "ttft.p99<1s,ttft.p99<2s"} {
		if o, err := study.ParseObjectives([]string{bad}); err == nil {
			t.Errorf("%s is %v", bad, o)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	e := studytest.Typical()
	e.Repeats, e.Rows, e.Manifest, e.State = 5, 10_000, nil, nil
	dir := b.TempDir()
	e.Write(b, dir)
	for b.Loop() {
		s, err := study.Read(b.Context(), dir, study.Config{Seed: 1})
		if err != nil {
			b.Fatal(err)
		}
		var page bytes.Buffer
		if err := s.WriteHTML(&page); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(page.Len()), "page-bytes")
	}
}
