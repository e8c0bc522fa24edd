package metrics

import (
	"strings"
	"testing"
	"time"
)

func TestParseObjectives(t *testing.T) {
	got, err := ParseObjectives([]string{"ttft.p99<500ms, tpot.P95 < 50ms", "e2e<10s", "ttft.p99.9<2s"}, 0.9)
	if err != nil {
		t.Fatal(err)
	}
	want := []Objective{
		{SLO{MetricTTFT, 500 * time.Millisecond}, 0.99, "99"},
		{SLO{MetricTPOT, 50 * time.Millisecond}, 0.95, "95"},
		{SLO{MetricE2E, 10 * time.Second}, 0.9, ""},
		{SLO{MetricTTFT, 2 * time.Second}, 0.9990000000000001, "99.9"},
	}
	for i, o := range got {
		if i >= len(want) || o.SLO != want[i].SLO || o.Percentile != want[i].Percentile || o.Share-want[i].Share > 1e-9 {
			t.Errorf("objective %d is %+v, want %+v", i, o, want[i])
		}
		b, err := o.MarshalText()
		var back Objective
		if err != nil || back.UnmarshalText(b) != nil || back.SLO != o.SLO || back.Share != o.Share {
			t.Errorf("%v became %s and %v (%v)", o, b, back, err)
		}
	}
	if s := got[2].String(); s != "e2e<10s for 90 %" {
		t.Errorf("it reads %q", s)
	}
	for text, says := range map[string]string{
		"ttft.p100<1s":                "no percentile",
		"ttft.99<1s":                  "no percentile",
		"ttft.p1e1<1s":                "no percentile",
		"itl.p99<1s":                  "no metric",
		"ttft.p99":                    "want a metric",
		"ttft.p99<1s,ttft.p99.0<2s":   "same share",
		"ttft.p99<0s":                 "nothing takes less",
		"tpot.p95<fast":               "no duration",
		"e2e.p50<1s,e2e<2s,e2e.p90<1": "no duration",
	} {
		if _, err := ParseObjectives([]string{text}, 0.9); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want it to say %q", text, err, says)
		}
	}
	if _, err := ParseObjectives([]string{"ttft<1s"}, 0); err == nil || !strings.Contains(err.Error(), "which share") {
		t.Errorf("without a share: %v", err)
	}
}
