package study

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"reprise/internal/units"
)

// maxFit bounds what is shown of a fit.
const maxFit = 40

// newSimFit reads what a run.json says of the error of a fit: an object of
// figures, nested or not, or a text. What it is named there is what it is
// called here.
func newSimFit(raw json.RawMessage) *SimFit {
	f := &SimFit{Error: map[string]string{}}
	if f.fitted(raw) {
		return f
	}
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return f
	}
	f.flatten("", v)
	return f
}

// fitted reads a cost model with the runs that it was held against: those it was
// not fitted to, if there are some.
func (f *SimFit) fitted(raw json.RawMessage) bool {
	type run struct {
		Run    string `json:"run"`
		Errors []struct {
			Metric   string  `json:"metric"`
			Quantile float64 `json:"quantile"`
			Error    float64 `json:"error"` // simulated / measured - 1
		} `json:"errors"`
	}
	var v struct {
		Fit         run   `json:"fit"`
		Validations []run `json:"validations"`
	}
	if json.Unmarshal(raw, &v) != nil {
		return false
	}
	runs, how := v.Validations, "of another run, "
	if len(runs) == 0 {
		runs, how = []run{v.Fit}, "of the run that it was fitted to, "
	}
	for _, r := range runs {
		for _, e := range r.Errors {
			if len(f.Error) >= maxFit {
				return true
			}
			name := fmt.Sprintf("%s%s: %s p%g", how, r.Run, strings.ToUpper(e.Metric), 100*e.Quantile)
			if _, seen := f.Error[name]; !seen {
				f.order = append(f.order, name)
			}
			sign := "+"
			if e.Error < 0 {
				sign = "-"
			}
			f.Error[name] = sign + units.Percent(max(e.Error, -e.Error))
		}
	}
	return len(f.order) > 0
}

func (f *SimFit) flatten(name string, v any) {
	if len(f.Error) >= maxFit {
		return
	}
	put := func(text string) {
		if name == "" {
			name = "error"
		}
		f.Error[name] = text
		f.order = append(f.order, name)
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			f.flatten(strings.TrimSpace(name+" "+strings.ReplaceAll(k, "_", " ")), v[k])
		}
	case float64:
		put(units.Digits(v))
	case string:
		put(v)
	case bool:
		put(fmt.Sprint(v))
	case []any:
		for i, x := range v {
			f.flatten(strings.TrimSpace(fmt.Sprintf("%s %d", name, i+1)), x)
		}
	}
}
