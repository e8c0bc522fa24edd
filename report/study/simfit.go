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
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return f
	}
	f.flatten("", v)
	return f
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
