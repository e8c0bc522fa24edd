package plot

import (
	"bytes"
	"encoding/xml"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite testdata")

func figures() map[string]Figure {
	nan := math.NaN()
	return map[string]Figure{
		"lines": &Chart{
			Title: "Latency over load <&>", Desc: "Two lines.", X: Axis{Label: "requests/s", Zero: true}, Y: Axis{Label: "TTFT p99, s", Log: true},
			Lines: []Line{
				{Name: "vllm", X: []float64{1, 2, 4, 8}, Y: []float64{0.1, 0.12, 0.2, 3}, Low: []float64{0.09, 0.1, 0.15, 2}, High: []float64{0.11, 0.14, 0.3, 5}, Dots: true},
				{Name: "sglang", X: []float64{1, 2, 4, 8}, Y: []float64{0.2, nan, 0.25, 1}},
			},
			Rules: []Rule{{Name: "objective", Y: 0.5}},
		},
		"whiskers": &Chart{
			Title: "Levels", Desc: "Points with intervals both ways.", X: Axis{Label: "prefix caching", Ticks: []Tick{{0, "off"}, {1, "on, with a name that is far too long for any axis"}}}, Y: Axis{Label: "TTFT p99, s"},
			Lines: []Line{
				{Name: "8", X: []float64{0, 1}, Y: []float64{3, 2}, Low: []float64{2.5, nan}, High: []float64{4, nan}, Whiskers: true, Dots: true, Labels: []string{"", "1"}},
				{Name: "64", X: []float64{0, 1}, Y: []float64{1, 2}, XLow: []float64{-0.1, 0.9}, XHigh: []float64{0.1, 1.1}, Whiskers: true, Dots: true, Loose: true},
			},
		},
		"steps": &Chart{
			Title: "Distribution", Desc: "One step function.", X: Axis{Label: "tokens", Log: true}, Y: Axis{Label: "share at or below", Percent: true, Fixed: true, Max: 1},
			Lines: []Line{{Name: "prompt", X: []float64{1, 10, 100, 1000}, Y: []float64{0.1, 0.4, 0.9, 1}, Step: true}},
		},
		"heat": &HeatMap{
			Title: "Joint lengths", Desc: "Three cells.", X: Axis{Label: "prompt", Log: true}, Y: Axis{Label: "output"},
			XEdges: []float64{1, 10, 100}, YEdges: []float64{0, 1, 2}, Values: [][]float64{{0.5, 0}, {0.2, 0.3}}, Label: "of requests",
		},
		"bars": &Bars{
			Title: "Verdicts", Desc: "Two groups.", X: Axis{Label: "KS"}, Labels: []string{"prompt", "output"},
			Series: []BarSeries{{Name: "model", Values: []float64{0.01, 0.03}}, {Name: "floor", Values: []float64{0.02, nan}}},
			Rules:  []Rule{{Name: "limit", Y: 0.02}},
		},
	}
}

func TestGolden(t *testing.T) {
	for name, f := range figures() {
		var b bytes.Buffer
		if err := f.WriteSVG(&b); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".svg")
		if *update {
			if err := os.WriteFile(file, b.Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%s differs from testdata; look at it and run with -update", name)
		}
	}
}

// checkSVG says what makes a drawing unusable: broken XML, no texts for a
// screen reader, scripts, or coordinates that are no numbers.
func checkSVG(t interface {
	Errorf(string, ...any)
}, data []byte,
) {
	d := xml.NewDecoder(bytes.NewReader(data))
	seen := map[string]bool{}
	for {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Errorf("not XML: %v", err)
			return
		}
		if e, ok := tok.(xml.StartElement); ok {
			seen[e.Name.Local] = true
			for _, a := range e.Attr {
				if strings.HasPrefix(a.Name.Local, "on") || a.Name.Local == "href" {
					t.Errorf("attribute %s", a.Name.Local)
				}
			}
		}
	}
	for _, want := range []string{"svg", "title", "desc"} {
		if !seen[want] {
			t.Errorf("no %s element", want)
		}
	}
	if seen["script"] || seen["image"] {
		t.Errorf("there is a script or an image")
	}
	for _, bad := range []string{"NaN", "Inf", "e+"} {
		if bytes.Contains(data, []byte(`"`+bad)) || bytes.Contains(data, []byte(" "+bad)) {
			t.Errorf("%s among the coordinates", bad)
		}
	}
}

func TestFiguresAreSound(t *testing.T) {
	for name, f := range figures() {
		var b bytes.Buffer
		if err := f.WriteSVG(&b); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { checkSVG(t, b.Bytes()) })
		head, rows := f.Data()
		if len(rows) == 0 {
			t.Errorf("%s has no data table", name)
		}
		for _, r := range rows {
			if len(r) != len(head) {
				t.Errorf("%s: row %q under head %q", name, r, head)
			}
		}
	}
}

// Any data give a drawing: empty, constant, not numbers, negative on a
// logarithmic axis, huge.
func TestAnyDataDraw(t *testing.T) {
	value := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, -1, 1, math.NaN(), math.Inf(1), math.Inf(-1), 1e300, 1e-300}))
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 6).Draw(t, "n")
		draw := func(name string) []float64 { return rapid.SliceOfN(value, n, n).Draw(t, name) }
		l := Line{Name: rapid.String().Draw(t, "name"), X: draw("x"), Y: draw("y"), Step: rapid.Bool().Draw(t, "step"), Dots: true}
		if rapid.Bool().Draw(t, "band") {
			l.Low, l.High = draw("low"), draw("high")
		}
		c := &Chart{Title: "t", X: Axis{Log: rapid.Bool().Draw(t, "logx")}, Y: Axis{Log: rapid.Bool().Draw(t, "logy"), Percent: true}, Lines: []Line{l}}
		var b bytes.Buffer
		if err := c.WriteSVG(&b); err != nil {
			t.Fatal(err)
		}
		if b.Len() > 1<<20 {
			t.Fatalf("%d bytes", b.Len())
		}
		d := xml.NewDecoder(&b)
		d.Strict = true
		for {
			_, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		c.Data()
	})
}

func TestTicks(t *testing.T) {
	for _, tt := range []struct {
		axis     Axis
		min, max float64
		want     []string
	}{
		{Axis{}, 0, 10, []string{"0", "2", "4", "6", "8", "10"}},
		{Axis{}, 0, 0.7, []string{"0", "0.2", "0.4", "0.6"}},
		{Axis{Percent: true}, 0, 1, []string{"0 %", "20 %", "40 %", "60 %", "80 %", "100 %"}},
		{Axis{Log: true}, 1, 100000, []string{"1", "10", "100", "1000", "10k", "100k"}},
		{Axis{Log: true}, 1, 20, []string{"1", "2", "5", "10", "20"}},
		{Axis{Log: true}, 100, 200, []string{"100", "120", "140", "160", "180", "200"}},
		{Axis{Log: true}, 1e-3, 1e9, []string{"0.001", "1", "1000", "1M", "1G"}},
	} {
		a := tt.axis
		a.Fixed, a.Min, a.Max = true, tt.min, tt.max
		var got []string
		for _, v := range a.fit(nil, 0, 100).ticks(5) {
			got = append(got, a.label(v))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("ticks of %v to %v = %q, want %q", tt.min, tt.max, got, tt.want)
		}
	}
}

func TestCDF(t *testing.T) {
	x, y := CDF([]float64{3, 1, 2, 2}, 10)
	if !slices.Equal(x, []float64{1, 2, 3}) || !slices.Equal(y, []float64{0.25, 0.75, 1}) {
		t.Errorf("CDF = %v, %v", x, y)
	}
	var many []float64
	for i := range 10000 {
		many = append(many, float64(i))
	}
	x, y = CDF(many, 50)
	if len(x) != 50 || x[0] != 0 || x[49] != 9999 || y[49] != 1 {
		t.Errorf("%d points from %v to %v", len(x), x[0], x[len(x)-1])
	}
	if x, _ := CDF(nil, 5); x != nil {
		t.Errorf("CDF of nothing = %v", x)
	}
}

func TestMistakesAreErrors(t *testing.T) {
	for _, f := range []Figure{
		&Chart{Title: "c", Lines: []Line{{X: []float64{1}, Y: []float64{1, 2}}}},
		&Chart{Title: "c", Lines: []Line{{X: []float64{1}, Low: []float64{1}}}},
		&HeatMap{Title: "h", XEdges: []float64{1, 2}, YEdges: []float64{1, 2}, Values: [][]float64{{1, 2}}},
		&HeatMap{Title: "h", XEdges: []float64{1, 2}, YEdges: []float64{1, 2, 3}, Values: [][]float64{{1}}},
		&Bars{Title: "b", Labels: []string{"x"}, Series: []BarSeries{{Values: []float64{1, 2}}}},
	} {
		if err := f.WriteSVG(io.Discard); err == nil {
			t.Errorf("%+v draws", f)
		}
	}
}

func TestPage(t *testing.T) {
	var b bytes.Buffer
	err := WritePage(&b, "A <page>", Section{Title: "Figures", Text: []string{"one & two"}, Head: []string{"m", "verdict"}, Rows: [][]string{{"x", "fail"}}, Marks: []string{"fail"}, Figures: []Figure{figures()["lines"], figures()["bars"]}})
	if err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{"<title>A &lt;page&gt;</title>", "one &amp; two", `<td class="fail">fail</td>`, "<details>", "viewport", "prefers-color-scheme:dark"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []string{"<script", "http://www.w3.org/1999", "src="} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	// Ids are unique on the page.
	ids := map[string]bool{}
	for _, part := range strings.Split(page, ` id="`)[1:] {
		id, _, _ := strings.Cut(part, `"`)
		if ids[id] {
			t.Errorf("id %s is there twice", id)
		}
		ids[id] = true
	}
}
