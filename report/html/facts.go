package html

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"reprise/gpu/findings"
	"reprise/internal/metrics"
	iunits "reprise/internal/units"
	"reprise/report"
)

// fidelity says how far each run did what its trace says.
func fidelity(names []string, sums []*metrics.Summary) *table {
	t := &table{Caption: "What each run did of what its trace says", Head: append([]string{""}, names...)}
	row := func(name string, of func(*metrics.Summary) cell) {
		cells := []cell{text(name)}
		for _, s := range sums {
			cells = append(cells, of(s))
		}
		t.Rows = append(t.Rows, cells)
	}
	row("Verdict", func(s *metrics.Summary) cell {
		class := map[string]string{metrics.Valid: "good", metrics.Invalid: "bad"}[s.Fidelity.Verdict]
		return cell{Text: strings.ReplaceAll(s.Fidelity.Verdict, "_", " "), Chip: "plain " + class}
	})
	row("Send error", func(s *metrics.Summary) cell {
		if f := &s.Fidelity; f.SendError.OK {
			return cell{Text: f.SendErrorOf + " " + f.SendError.V.String(), Sub: "limit " + units(f.SendErrorLimit)}
		}
		return text("-")
	})
	for _, f := range []struct {
		name string
		of   func(*metrics.Requests) int64
	}{
		{"Requests measured", func(q *metrics.Requests) int64 { return q.Measured }}, {"Succeeded", func(q *metrics.Requests) int64 { return q.OK }},
		{"Failed", func(q *metrics.Requests) int64 { return q.Failed }}, {"Shed", func(q *metrics.Requests) int64 { return q.Shed }},
		{"Hung up, as the recorded user did", func(q *metrics.Requests) int64 { return q.Aborted }}, {"Never sent", func(q *metrics.Requests) int64 { return q.Unsent }},
	} {
		row(f.name, func(s *metrics.Summary) cell { return count(f.of(&s.Requests)) })
	}
	row("Prompt tokens exact", func(s *metrics.Summary) cell { return text(exact(&s.Lengths.Prompt)) })
	row("Output tokens exact", func(s *metrics.Summary) cell { return text(exact(&s.Lengths.Output)) })
	row("Prompt tokens from the cache", func(s *metrics.Summary) cell {
		if s.Tokens.CachedOf == 0 {
			return text("-")
		}
		return text(iunits.Percent(s.Tokens.CacheHit()))
	})
	return t
}

func exact(l *metrics.Length) string {
	if l.Verified == 0 {
		return "-"
	}
	return fmt.Sprintf("%s of %s", iunits.Count(l.Exact), iunits.Count(l.Verified))
}

// failures lists the ways in which requests failed.
func failures(names []string, sums []*metrics.Summary) *table {
	t := &table{Caption: "Failures", Head: []string{"run", "outcome", "error", "requests"}}
	for i, s := range sums {
		for _, f := range s.Requests.Failures[:min(len(s.Requests.Failures), 20)] {
			t.Rows = append(t.Rows, []cell{text(names[i]), text(f.Outcome), text(f.Error), count(f.N)})
		}
	}
	if t.Rows == nil {
		return nil
	}
	return t
}

// manifest is what run.json says, in facts.
func manifest(m *report.Manifest) (out []fact) {
	if m == nil {
		return nil
	}
	add := func(name, format string, a ...any) {
		if v := strings.TrimSpace(fmt.Sprintf(format, a...)); v != "" {
			out = append(out, fact{name, v})
		}
	}
	if m.Stats != nil {
		add("Started", "%s", m.Stats.StartedAt.UTC().Format("2006-01-02 15:04:05 UTC"))
		add("Took", "%s", units(m.Stats.Elapsed))
		add("In flight at most", "%s", iunits.Count(m.Stats.Peak))
		if m.Stats.Retries > 0 {
			add("Retries", "%s", iunits.Count(m.Stats.Retries))
		}
	}
	add("State", "%s", m.State)
	add("Backend", "%s", m.Server.Backend)
	var info map[string]any
	if json.Unmarshal(m.Server.Info, &info) == nil {
		for _, k := range []string{"engine", "version", "model", "max_model_len"} {
			if v, ok := info[k]; ok && v != nil {
				add("Server "+strings.ReplaceAll(k, "_", " "), "%v", scalar(v))
			}
		}
	}
	add("Client", "%s", m.Server.Client)
	add("Trace", "%s", m.Trace.Name)
	add("Requests planned", "%s", iunits.Count(m.Plan.Rows))
	add("Prompt tokens planned", "%s", iunits.Count(m.Plan.PromptTokens))
	add("Output tokens planned", "%s", iunits.Count(m.Plan.OutputTokens))
	add("Span", "%s", units(m.Plan.Span))
	if m.Plan.Warmup > 0 {
		add("Warm-up", "%s", units(m.Plan.Warmup))
	}
	add("Plan digest", "%.16s", m.Plan.Digest)
	add("Program", "%s %s", m.Program.Name, m.Program.Version)
	if m.Program.Revision != "" {
		changed := ""
		if m.Program.Modified {
			changed = ", modified"
		}
		add("Revision", "%.12s%s", m.Program.Revision, changed)
	}
	return out
}

// serverModel is the model that a run was played against, as the server said.
func serverModel(m *report.Manifest) string {
	var info struct {
		Model string `json:"model"`
	}
	if json.Unmarshal(m.Server.Info, &info) != nil {
		return ""
	}
	return info.Model
}

// maxSettings bounds what is listed of options and of a server's settings.
const maxSettings = 200

// settings flattens the options and the server's configuration, for the reader
// who asks what exactly was run.
func settings(m *report.Manifest) (out []fact) {
	if m == nil {
		return nil
	}
	var info struct {
		Config map[string]any `json:"config"`
	}
	var options map[string]any
	if json.Unmarshal(m.Options, &options) == nil {
		flatten("", options, &out)
	}
	if json.Unmarshal(m.Server.Info, &info) == nil {
		flatten("server ", info.Config, &out)
	}
	return out[:min(len(out), maxSettings)]
}

func flatten(prefix string, m map[string]any, out *[]fact) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		name := prefix + strings.ReplaceAll(k, "_", " ")
		switch v := m[k].(type) {
		case map[string]any:
			flatten(name+" ", v, out)
		case nil:
		case []any:
			if b, err := json.Marshal(v); err == nil && len(v) > 0 {
				*out = append(*out, fact{name, string(b)})
			}
		default:
			if ns, ok := strings.CutSuffix(name, " ns"); ok {
				if f, isNumber := v.(float64); isNumber {
					*out = append(*out, fact{ns, units(time.Duration(f))})
					continue
				}
			}
			*out = append(*out, fact{name, scalar(v)})
		}
	}
}

// scalar writes a value of JSON.
func scalar(v any) string {
	if f, ok := v.(float64); ok {
		if f == float64(int64(f)) {
			return iunits.Count(int64(f))
		}
		return iunits.Digits(f)
	}
	return fmt.Sprint(v)
}

// host is what the telemetry of runs says, one column a run.
func host(tracks []track) (t *table, notes []string) {
	t = &table{Caption: "Serving host, over the measured window", Head: []string{""}}
	type line struct {
		name string
		of   func(*findings.Findings) string
	}
	level := func(l *findings.Level, factor float64, unit string) string {
		if l == nil {
			return ""
		}
		return fmt.Sprintf("%s %s (max %s)", iunits.Digits(l.Mean*factor), unit, iunits.Digits(l.Max*factor))
	}
	lines := []line{
		{"Environment", func(f *findings.Findings) string { return f.Environment.Verdict }},
		{"Joules per output token", func(f *findings.Findings) string {
			if f.Energy == nil || !f.Energy.PerOutputToken.OK {
				return ""
			}
			return iunits.Digits(f.Energy.PerOutputToken.V)
		}},
		{"GPU power, all", func(f *findings.Findings) string {
			if f.Energy == nil {
				return ""
			}
			return fmt.Sprintf("%s W, %d GPUs", iunits.Digits(f.Energy.Watts), f.Energy.GPUs)
		}},
		{"Requests running", func(f *findings.Findings) string {
			if f.Engine == nil {
				return ""
			}
			return strings.TrimSuffix(level(f.Engine.Running, 1, ""), " ")
		}},
		{"Requests waiting", func(f *findings.Findings) string {
			if f.Engine == nil {
				return ""
			}
			return level(f.Engine.Waiting, 1, "")
		}},
		{"Preemptions", func(f *findings.Findings) string {
			if f.Engine == nil || !f.Engine.Preemptions.OK {
				return ""
			}
			return iunits.Count(f.Engine.Preemptions.V)
		}},
		{"KV cache in use", func(f *findings.Findings) string {
			if f.KV == nil {
				return ""
			}
			return level(f.KV.Usage, 100, "%")
		}},
		{"KV cache capacity, tokens", func(f *findings.Findings) string {
			if f.KV == nil || !f.KV.Capacity.OK {
				return ""
			}
			return iunits.Count(int64(f.KV.Capacity.V))
		}},
		{"KV tokens per resident token", func(f *findings.Findings) string {
			if f.KV == nil || !f.KV.PerResident.OK {
				return ""
			}
			return iunits.Digits(f.KV.PerResident.V)
		}},
		{"Prefix cache hits, by the engine", func(f *findings.Findings) string {
			if f.Prefix == nil {
				return ""
			}
			return iunits.Percent(f.Prefix.Hit)
		}},
		{"In flight, by Little's law", func(f *findings.Findings) string {
			if f.Little == nil {
				return ""
			}
			return fmt.Sprintf("%s (engine counts %s)", iunits.Digits(f.Little.Law), iunits.Digits(f.Little.Engine))
		}},
	}
	any := false
	for _, k := range tracks {
		t.Head = append(t.Head, k.Name)
		if f := k.Findings; f != nil {
			any = true
			for _, w := range slices.Concat(f.Environment.Reasons, f.Environment.Warnings, f.Warnings) {
				notes = append(notes, k.Name+": "+w)
			}
		}
		for _, n := range k.Notes {
			notes = append(notes, k.Name+": "+n)
		}
	}
	if !any {
		return nil, notes
	}
	for _, l := range lines {
		row, known := []cell{text(l.name)}, false
		for _, k := range tracks {
			v := ""
			if k.Findings != nil {
				v = strings.ReplaceAll(l.of(k.Findings), "  ", " ")
			}
			known = known || v != ""
			if v == "" {
				v = "-"
			}
			row = append(row, text(v))
		}
		if known {
			t.Rows = append(t.Rows, row)
		}
	}
	return t, notes
}

// how explains the figures of every page.
var how = []string{
	"Time zero of a request is its scheduled send, not the moment a free worker got to it; a sender that falls behind cannot hide what its delay did.",
	"TTFT is the time to the first event that carries a token, E2E to the last one. TPOT is (last token - first token) / (output tokens - 1), a request at a time. ITL is the gap between tokens, pooled over all.",
	"Success is a finish reason of stop or length with as many tokens as were asked for. Latencies are of successes; failures are counted beside them.",
	"Distributions come from histograms with steps of 1 %; what happened over time is reduced to windows. Tables hold exact figures where the text does not say otherwise.",
}
