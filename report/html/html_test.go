package html

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"reprise/gpu"
	"reprise/report"
	"reprise/traceformat"
)

// evil is a name that would do harm wherever it became markup, script, style, an
// attribute or a command.
const evil = `"><img src=x onerror=alert(1)></script><script>alert(2)</script>';$(touch /pwned)` + "`id`" + `{{.}}<style>*{display:none}</style>&lt;`

// made is a run directory of n requests with latencies that follow a factor,
// with telemetry, and with hostile names wherever a name can be.
func made(t testing.TB, n int, seed uint64, factor float64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run"+fmt.Sprint(seed))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := traceformat.Create(filepath.Join(dir, "trace.parquet"), nil)
	if err != nil {
		t.Fatal(err)
	}
	asked, noise := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(seed, 2))
	for i := range n {
		r := &traceformat.Row{}
		r.ID, r.Arrival = int64(i), time.Duration(i)*20*time.Millisecond
		r.Session, r.Turn = traceformat.Some(int64(i/3)), traceformat.Some(int32(i%3))
		r.Client = []string{"batch", evil}[i%2]
		prompt := int32(200 * math.Exp(asked.NormFloat64()))
		output := 2 + int32(30*asked.ExpFloat64())
		r.PromptTokens, r.OutputTokens = traceformat.Some(prompt), traceformat.Some(output)
		r.ServedPromptTokens, r.ServedOutputTokens, r.ServedCachedTokens = traceformat.Some(prompt), traceformat.Some(output), traceformat.Some(prompt/int32(1+i%3))
		r.PromptDigest = traceformat.Some(int64(i))
		r.Scheduled, r.Sent = traceformat.Some(r.Arrival), traceformat.Some(r.Arrival+20*time.Microsecond)
		r.TTFT = traceformat.Some(time.Duration(factor * 1e6 * (20 + float64(prompt)/20) * math.Exp(0.3*noise.NormFloat64())))
		r.E2E = traceformat.Some(r.TTFT.V + time.Duration(float64(output)*factor*12e6))
		r.Close = traceformat.Some(r.Sent.V + r.E2E.V)
		r.Status, r.Result, r.FinishReason = traceformat.Some[int16](200), traceformat.ResultOK, "length"
		if i%97 == 0 {
			r.Result, r.Error, r.Status = traceformat.ResultServerError, evil, traceformat.Some[int16](500)
		}
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	span := time.Duration(n) * 20 * time.Millisecond
	b, err := json.Marshal(map[string]any{
		"version": 1, "state": "complete", "program": map[string]any{"name": evil, "version": evil}, "args": []string{evil},
		"options": map[string]any{"seed": 1, evil: evil, "speedup": seed}, "trace": map[string]any{"name": evil},
		"plan":   map[string]any{"digest": "abc", "requests": n, "span_ns": span.Nanoseconds(), "prompts_as_text": false},
		"server": map[string]any{"backend": evil, "info": map[string]any{"engine": evil, "model": evil, "config": map[string]any{"a": evil}}},
		"stats":  map[string]any{"started_at": "2026-01-02T03:04:05Z", "elapsed_ns": span.Nanoseconds(), "requests_sent": n},
		"telemetry": map[string]any{"notes": []string{evil}, "environment": map[string]any{"verdict": "doubtful", "warnings": []string{evil}},
			"kv_cache": map[string]any{"growth": []map[string]any{{"in_flight_mean": 1, "used_tokens_mean": 100}, {"in_flight_mean": 2, "used_tokens_mean": 300}}}},
		"warnings": []string{evil},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "run.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	tw, err := gpu.Create(filepath.Join(dir, gpu.FileName))
	if err != nil {
		t.Fatal(err)
	}
	for k := range 200 {
		at := span * time.Duration(k) / 200
		tw.Add(gpu.Sample{Time: at, Source: "nvml", Device: "gpu0", Metric: gpu.GPUPower, Unit: "W", Value: 300 + 50*math.Sin(float64(k)/9)})
		tw.Add(gpu.Sample{Time: at, Source: "nvml", Device: "gpu1", Metric: gpu.GPUPower, Unit: "W", Value: 250})
		tw.Add(gpu.Sample{Time: at, Source: "engine", Device: "engine", Metric: "gen_ai.server.kv_cache.usage", Unit: "1", Value: float64(k) / 400})
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// pages are a comparison and a run of so many requests.
func pages(t testing.TB, n int) (compared, one []byte) {
	t.Helper()
	a, b := made(t, n, 1, 1), made(t, n, 2, 1.3)
	conf := report.CompareConfig{Seed: 1}
	c, err := report.Compare(t.Context(), report.Side{Name: evil + " A", Runs: []string{a}}, report.Side{Name: evil + " B", Runs: []string{b}}, conf)
	if err != nil {
		t.Fatal(err)
	}
	c.Warnings = append(c.Warnings, evil)
	ps, err := report.Profiles(t.Context(), []string{a, b}, conf.Config)
	if err != nil {
		t.Fatal(err)
	}
	if ps[0].Width != ps[1].Width || len(ps[0].Windows) > 120 || len(ps[0].Telemetry) != 2 || ps[0].Telemetry[1].Devices != 2 {
		t.Errorf("windows of %v and %v, %d; telemetry %+v", ps[0].Width, ps[1].Width, len(ps[0].Windows), ps[0].Telemetry)
	}
	var buf bytes.Buffer
	if err := WriteComparison(&buf, c, []report.Check{{Gate: evil, Failed: true, Text: evil}}, [2]*report.Profile{ps[0], ps[1]}); err != nil {
		t.Fatal(err)
	}
	analysis, err := report.Analyse(t.Context(), a, report.Config{})
	if err != nil {
		t.Fatal(err)
	}
	analysis.Name = evil
	var run bytes.Buffer
	if err := WriteRun(&run, analysis); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), run.Bytes()
}

// manyPages are the pages of three sides and of three repeats, of so many
// requests.
func manyPages(t testing.TB, n int) (family, repeats []byte) {
	t.Helper()
	runs := []string{made(t, n, 1, 1), made(t, n, 2, 1.3), made(t, n, 3, 1)}
	side := func(i int) report.Side { return report.Side{Name: fmt.Sprint(evil, i), Runs: runs[i : i+1]} }
	f, err := report.CompareAll(t.Context(), [][2]report.Side{{side(0), side(1)}, {side(0), side(2)}}, report.CompareConfig{Seed: 1, Charts: true})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := f.Profiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b, c bytes.Buffer
	if err := WriteFamily(&b, f, [][]report.Check{{{Gate: evil, Side: evil, Failed: true, Text: evil}}, nil}, ps); err != nil {
		t.Fatal(err)
	}
	r, err := report.AnalyseRepeats(t.Context(), report.Side{Name: evil, Runs: runs}, report.Config{As: "vllm"})
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteRepeats(&c, r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), c.Bytes()
}

// A node's text, all of it.
func content(n *html.Node) string {
	var b strings.Builder
	for c := range n.Descendants() {
		if c.Type == html.TextNode {
			b.WriteString(c.Data)
		}
	}
	return b.String()
}

func attr(n *html.Node, key string) (string, bool) {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val, true
		}
	}
	return "", false
}

func TestPagesAreSelfContainedAndInert(t *testing.T) {
	compared, one := pages(t, 3000)
	family, repeats := manyPages(t, 3000)
	for name, page := range map[string][]byte{"comparison": compared, "run": one, "family": family, "repeats": repeats} {
		doc, err := html.Parse(bytes.NewReader(page))
		if err != nil {
			t.Fatal(err)
		}
		policy, scripts, styles, texts := "", 0, 0, 0
		hashed := func(n *html.Node) string {
			sum := sha256.Sum256([]byte(content(n)))
			return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		}
		ids := map[string]bool{}
		for n := range doc.Descendants() {
			if n.Type == html.TextNode && strings.Contains(n.Data, "onerror=alert(1)") {
				texts++
			}
			if n.Type != html.ElementNode {
				continue
			}
			for _, a := range n.Attr {
				switch {
				case strings.HasPrefix(a.Key, "on"), a.Key == "style", a.Key == "src", a.Key == "action", a.Key == "srcset":
					t.Errorf("%s: <%s %s=%q>", name, n.Data, a.Key, a.Val)
				case a.Key == "href" && !strings.HasPrefix(a.Val, "#"), a.Key == "xlink:href":
					t.Errorf("%s: <%s %s=%q> leads elsewhere", name, n.Data, a.Key, a.Val)
				case a.Key == "id":
					if ids[a.Val] {
						t.Errorf("%s: id %q twice", name, a.Val)
					}
					ids[a.Val] = true
				}
			}
			switch n.DataAtom {
			case atom.Meta:
				if v, _ := attr(n, "http-equiv"); v == "Content-Security-Policy" {
					policy, _ = attr(n, "content")
				}
			case atom.Style:
				if styles++; !strings.Contains(policy, hashed(n)) {
					t.Errorf("%s: the policy %q does not hold the hash of a style", name, policy)
				}
			case atom.Script:
				if kind, _ := attr(n, "type"); kind == "application/json" {
					var panels []map[string]any
					if err := json.Unmarshal([]byte(content(n)), &panels); err != nil || len(panels) < 6 {
						t.Errorf("%s: %d panels, %v", name, len(panels), err)
					}
					continue
				}
				if scripts++; !strings.Contains(policy, hashed(n)) {
					t.Errorf("%s: the policy %q does not hold the hash of a script", name, policy)
				}
			case atom.Img, atom.Link, atom.Iframe, atom.Object, atom.Base, atom.Form:
				t.Errorf("%s: an element <%s>", name, n.Data)
			}
		}
		if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") || scripts != 1 || styles != 1 {
			t.Errorf("%s: policy %q, %d scripts, %d styles", name, policy, scripts, styles)
		}
		if texts < 5 {
			t.Errorf("%s: hostile names are shown as text %d times", name, texts)
		}
		if u := regexp.MustCompile(`(?i)\b(https?|ftp|wss?)://[^"' <)]*`).FindAllString(string(page), -1); len(u) > 0 {
			for _, x := range u {
				if !strings.HasPrefix(x, "http://www.w3.org/2000/svg") {
					t.Errorf("%s: an address: %s", name, x)
				}
			}
		}
		for _, bad := range []string{"NaN", "ZgotmplZ", "%!"} {
			if bytes.Contains(page, []byte(">"+bad)) || bytes.Contains(page, []byte(bad+"<")) {
				t.Errorf("%s holds %s", name, bad)
			}
		}
	}
}

// What a page must show, and that each figure has its data and its words.
func TestComparisonHasWhatAReaderNeeds(t *testing.T) {
	compared, _ := pages(t, 3000)
	doc, err := html.Parse(bytes.NewReader(compared))
	if err != nil {
		t.Fatal(err)
	}
	sections, figures, live := map[string]bool{}, 0, map[string]bool{}
	for n := range doc.Descendants() {
		switch n.DataAtom {
		case atom.Section:
			id, _ := attr(n, "id")
			sections[id] = true
		case atom.Figure:
			figures++
			if p, ok := attr(n, "data-panel"); ok {
				live[p] = true
			}
			tables, svgs := 0, 0
			for c := range n.Descendants() {
				switch c.Data {
				case "table":
					tables++
				case "svg":
					svgs++
				}
			}
			if tables != 1 || svgs != 1 {
				t.Errorf("a figure has %d drawings and %d tables", svgs, tables)
			}
		}
	}
	for _, want := range []string{"summary", "work", "distributions", "shift", "time", "load", "facts", "segments", "movers", "runs", "how"} {
		if !sections[want] {
			t.Errorf("no section %s", want)
		}
	}
	for _, want := range []string{"ttft", "e2e", "tpot", "tokens", "flight", "failed", "gauge1", "gauge2"} {
		if !live[want] {
			t.Errorf("no chart %s over time", want)
		}
	}
	if figures < 18 {
		t.Errorf("%d figures", figures)
	}
	text := content(doc)
	for _, want := range []string{"VALID", "Was it the same work?", "Settings that differ", "KV cache against requests in flight", "server error", "95 %"} {
		if !strings.Contains(strings.ReplaceAll(text, "_", " "), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// A page of three sides has each of them in its charts and a section for each
// comparison; one of repeats has a column for each run.
func TestManySides(t *testing.T) {
	family, repeats := manyPages(t, 1000)
	parse := func(page []byte) (text string, sections map[string]bool) {
		doc, err := html.Parse(bytes.NewReader(page))
		if err != nil {
			t.Fatal(err)
		}
		sections = map[string]bool{}
		for n := range doc.Descendants() {
			if n.DataAtom == atom.Section {
				id, _ := attr(n, "id")
				sections[id] = true
			}
		}
		return content(doc), sections
	}
	text, sections := parse(family)
	for _, want := range []string{"summary", "distributions", "shift", "time", "load", "facts", "against-b", "against-c", "runs", "how"} {
		if !sections[want] {
			t.Errorf("no section %s", want)
		}
	}
	for _, want := range []string{"C against A", "all 2 comparisons", "Requests that moved most", "C, TTFT: difference at each quantile", "KV cache in use"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page of three sides does not say %q", want)
		}
	}
	for _, mark := range []string{"A", "B", "C"} {
		if !bytes.Contains(family, []byte(`{"name":"`+mark+`","color":`)) {
			t.Errorf("no line of %s over time", mark)
		}
	}
	text, sections = parse(repeats)
	for _, want := range []string{"summary", "distributions", "time", "load", "facts", "segments", "fidelity", "runs", "how"} {
		if !sections[want] {
			t.Errorf("no section %s", want)
		}
	}
	for _, want := range []string{"Student's over the runs", "As vllm would print it", "run 3", "least to greatest"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page of repeats does not say %q", want)
		}
	}
}

// The size of a page does not follow that of the run.
func TestSizeIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("makes runs of 200,000 requests")
	}
	compared, one := pages(t, 200_000)
	small, _ := pages(t, 20_000)
	t.Logf("comparison %d KB (%d KB of a tenth), run %d KB", len(compared)>>10, len(small)>>10, len(one)>>10)
	const limit = 1500 << 10
	if len(compared) > limit || len(one) > limit || len(compared) > 2*len(small) {
		t.Errorf("pages of %d and %d bytes, %d of a tenth", len(compared), len(one), len(small))
	}
}

func TestInvalidComesFirst(t *testing.T) {
	a := made(t, 300, 1, 1)
	c, err := report.Compare(t.Context(), report.Side{Name: "a", Runs: []string{a}}, report.Side{Name: "b", Runs: []string{a}}, report.CompareConfig{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	c.Invalid = true
	ps, err := report.Profiles(t.Context(), []string{a, a}, report.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteComparison(&b, c, nil, [2]*report.Profile{ps[0], ps[1]}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if i, k := strings.Index(page, "<strong>INVALID</strong>"), strings.Index(page, `class="cards"`); i < 0 || k < i || strings.Contains(page, "<strong>VALID</strong>") {
		t.Errorf("INVALID at %d, figures at %d", i, k)
	}
}

// Captures without outcomes, runs of nothing but failures and of ten rows are
// shown for what they are.
func TestPoorRuns(t *testing.T) {
	for name, row := range map[string]func(*traceformat.Row){
		"no outcome": func(r *traceformat.Row) {},
		"failures": func(r *traceformat.Row) {
			r.Scheduled, r.Sent, r.Result, r.Error = traceformat.Some(r.Arrival), traceformat.Some(r.Arrival), traceformat.ResultTimeout, "timeout"
		},
	} {
		for _, n := range []int{0, 1, 10} {
			path := filepath.Join(t.TempDir(), "trace.parquet")
			w, err := traceformat.Create(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				r := &traceformat.Row{}
				r.ID, r.Arrival = int64(i), time.Duration(i)*time.Second
				row(r)
				if err := w.Write(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			a, err := report.Analyse(t.Context(), path, report.Config{})
			if err != nil {
				t.Fatalf("%s, %d rows: %v", name, n, err)
			}
			var b bytes.Buffer
			if err := WriteRun(&b, a); err != nil || strings.Contains(b.String(), ">NaN") {
				t.Errorf("%s, %d rows: %v", name, n, err)
			}
		}
	}
}
