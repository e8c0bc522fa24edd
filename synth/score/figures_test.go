package score

import (
	"bytes"
	"strings"
	"testing"
)

func TestFiguresOfWhatThereIs(t *testing.T) {
	a, b := poisson(1, 2), poisson(2, 2)
	var titles []string
	for _, f := range Figures(a, b) {
		titles = append(titles, f.Caption())
		if err := f.WriteSVG(&bytes.Buffer{}); err != nil {
			t.Errorf("%s: %v", f.Caption(), err)
		}
	}
	want := "Gaps between arrivals, over their mean|Burstiness over time scales|Prompt length|Output length|" +
		"Prompt and output length together: reference|Prompt and output length together: other|TTFT in a prefill queue"
	if got := strings.Join(titles, "|"); got != want {
		t.Errorf("figures %s, want %s", got, want)
	}
	c := blocks([]uint64{1, 2}, []uint64{1, 2, 3}, []uint64{1, 4}, []uint64{1, 4, 5})
	titles = nil
	for _, f := range Figures(c, c) {
		titles = append(titles, f.Caption())
	}
	if got := strings.Join(titles, "|"); !strings.Contains(got, "Hit ratio of a prefix cache") || !strings.Contains(got, "behind a cache of 10,000 blocks") {
		t.Errorf("figures of a trace with blocks: %s", got)
	}
	if f := Figures(&Sample{}, a); f != nil {
		t.Errorf("%d figures of nothing", len(f))
	}
}

func TestWriteHTML(t *testing.T) {
	a := poisson(1, 2)
	reports := []*Report{Compare(a, poisson(2, 2)), Compare(a, poisson(3, 2))}
	for _, r := range []*Report{reports[0], Median(reports)} {
		var b bytes.Buffer
		if err := r.WriteHTML(&b, "One <against> other", a, poisson(2, 2)); err != nil {
			t.Fatal(err)
		}
		page := b.String()
		for _, want := range []string{"One &lt;against&gt; other", `<td class="pass">pass</td>`, "<svg", "requests a second"} {
			if !strings.Contains(page, want) {
				t.Errorf("%d seeds: the page lacks %q", r.Seeds, want)
			}
		}
		if strings.Contains(page, "NaN") || strings.Contains(page, "<script") {
			t.Errorf("%d seeds: NaN or a script on the page", r.Seeds)
		}
	}
}

// FuzzReadReport checks that no bytes panic, and that what is read can be
// printed.
func FuzzReadReport(f *testing.F) {
	f.Add([]byte(`{"schema":"reprise.score/1","metrics":[{"key":"a","value":null,"limit_high":1e999}]}`))
	f.Add([]byte(`{"schema":"reprise.score/1","metrics":[{"value":0.5,"verdict":"pass","min":0.1}],"seeds":3}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ReadReport(data)
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := r.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		if err := r.WriteMarkdown(&b); err != nil {
			t.Fatal(err)
		}
	})
}
