package proxylog

import (
	"strings"
	"time"

	"reprise/capture"
	"reprise/internal/jsonscan"
	"reprise/traceformat"
)

// Langfuse exports observations; one of the type GENERATION is a request. Times
// are those of the SDK in the application, and UTC where they name no zone.
// Sources: "Blob storage export field reference", the public API.
var langfuseDialect = &Dialect{
	Name: "langfuse", Title: "Langfuse, observations", Vantage: "client",
	Detect: func(s *Sample) int {
		if s.keys("trace_id", "type") && s.anyKey("completion_start_time", "start_time") && s.anyKey("usage_details", "usage", "total_cost", "provided_model_name", "parent_observation_id") ||
			s.keys("traceId", "type", "startTime") || s.keys("data") && len(s.objects) == 1 && strings.Contains(s.objects[0]["data"], `"traceId"`) {
			return 96
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		if len(s.objects) > 0 && s.keys("data") && s.CSV == nil {
			s = inData(s) // a page of the API
		}
		utc := *o
		if utc.Zone == nil {
			utc.Zone = time.UTC
		}
		var keys []key
		for f, names := range map[field][]string{
			fieldStart: {"start_time", "startTime"},
			fieldEnd:   {"end_time", "endTime"},
			fieldFirst: {"completion_start_time", "completionStartTime"},
			fieldKind:  {"type"},
			fieldModel: {"provided_model_name", "providedModelName", "model", "model_id"},
			fieldPrompt: {"usage_details.input", "usageDetails.input", "usage.input", "usage.promptTokens", "usage.prompt_tokens",
				"prompt_tokens", "promptTokens", "input_usage", "inputUsage"},
			fieldOutput: {"usage_details.output", "usageDetails.output", "usage.output", "usage.completionTokens",
				"usage.completion_tokens", "completion_tokens", "completionTokens", "output_usage", "outputUsage"},
			fieldCached: {"usage_details.input_cached_tokens", "usageDetails.input_cached_tokens", "usage_details.cache_read_input_tokens",
				"usageDetails.cache_read_input_tokens"},
			fieldReasoning:   {"usage_details.output_reasoning_tokens", "usageDetails.output_reasoning_tokens"},
			fieldResult:      {"level"},
			fieldUser:        {"user_id", "userId"},
			fieldSession:     {"session_id", "sessionId"},
			fieldMaxTokens:   {"model_parameters.max_tokens", "modelParameters.max_tokens"},
			fieldTemperature: {"model_parameters.temperature", "modelParameters.temperature"},
		} {
			for _, n := range names {
				keys = append(keys, key{n, binding{field: f}})
			}
		}
		t, err := newTabled(s, newAssembler(&utc, traceformat.SourceUsage, traceformat.TTFTGateway), keys, func(t *tabled) {
			t.skip = func(r *record) string {
				if r.has(fieldKind) && r.text(fieldKind) != "GENERATION" {
					return reasonNotRequest
				}
				return ""
			}
			t.fix = func(r *record, l *capture.Logged) {
				if l.Row.Result == "" && r.has(fieldEnd) {
					l.Row.Result = traceformat.ResultOK
				}
			}
		})
		if t == nil {
			return nil, err
		}
		t.cap.Notes = append(t.cap.Notes, "times are those of the application that called the model")
		return inDataParser{t}, err
	},
}

// inData is the sample of a page of an API: what its "data" holds.
func inData(s *Sample) *Sample {
	var records [][]byte
	for _, rec := range s.Records {
		dataOf(rec, func(b []byte) { records = append(records, b) })
	}
	return newSample(records, nil)
}

// dataOf yields the elements of the array "data" of an object and reports
// whether there is one.
func dataOf(rec []byte, yield func([]byte)) bool {
	p := jsonscan.New(rec)
	if !p.Enter('{') {
		return false
	}
	for name, ok := p.Key(); ok; name, ok = p.Key() {
		if string(name) != "data" || p.Peek() != '[' {
			p.Skip()
			continue
		}
		if !balanced(rec) || !p.Enter('[') {
			return false
		}
		for p.Elem() {
			yield(p.Value())
		}
		return true
	}
	return false
}

// An inDataParser reads pages of an API as well as bare objects.
type inDataParser struct{ *tabled }

func (d inDataParser) Parse(rec []byte, e *Emitter) error {
	var errs error
	if d.csv == nil && dataOf(rec, func(b []byte) {
		if err := d.tabled.Parse(b, e); err != nil && errs == nil {
			errs = err
		}
	}) {
		return errs
	}
	return d.tabled.Parse(rec, e)
}
