package proxylog

import (
	"bytes"
	"strings"
	"time"

	"reprise/capture"
	"reprise/internal/jsonscan"
	"reprise/traceformat"
)

// Spans of OpenTelemetry's GenAI conventions in OTLP/JSON, as the Collector's
// file exporter writes them, under the conventions' old names and new ones. A
// span may cover retries. Source: semantic-conventions-genai, "Gen AI spans".
var otlpDialect = &Dialect{
	Name: "otel-genai", Title: "OpenTelemetry GenAI spans, OTLP/JSON", Vantage: "client",
	Detect: func(s *Sample) int { return otlpShare(s, []byte("gen_ai.")) },
	New:    func(s *Sample, o *Options) (Parser, error) { return newOTLP(s, o, false) },
}

// vLLM's spans "llm_request", one a request, with the engine's own times.
// Source: vllm/tracing/utils.py.
var vllmOTLPDialect = &Dialect{
	Name: "vllm-otlp", Title: "vLLM spans, OTLP/JSON", Vantage: "server",
	Detect: func(s *Sample) int {
		if otlpShare(s, []byte("gen_ai.latency.e2e")) > 0 || otlpShare(s, []byte("gen_ai.latency.time_in_queue")) > 0 {
			return 98
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) { return newOTLP(s, o, true) },
}

func otlpShare(s *Sample, mark []byte) int {
	if s.CSV != nil || !s.anyKey("resourceSpans", "resource_spans", "resourceLogs", "resourceMetrics") {
		return 0
	}
	for _, r := range s.Records {
		if bytes.Contains(r, mark) {
			return 97
		}
	}
	return 0
}

// otlpAttributes are the names of attributes, best first for each field.
var otlpAttributes = func() map[string]*binding {
	m := map[string]*binding{}
	rank := map[field]uint8{}
	for _, a := range []struct {
		name string
		bind binding
	}{
		{"gen_ai.latency.e2e", binding{field: fieldDuration, unit: unitSecond}},
		{"gen_ai.latency.time_to_first_token", binding{field: fieldTTFT, unit: unitSecond}},
		{"gen_ai.response.time_to_first_chunk", binding{field: fieldTTFT, unit: unitSecond}},
		{"gen_ai.server.time_to_first_token", binding{field: fieldTTFT, unit: unitSecond}},
		{"gen_ai.latency.time_in_queue", binding{field: fieldQueue, unit: unitSecond}},
		{"gen_ai.latency.time_in_model_prefill", binding{field: fieldPrefill, unit: unitSecond}},
		{"gen_ai.usage.input_tokens", binding{field: fieldPrompt}},
		{"gen_ai.usage.prompt_tokens", binding{field: fieldPrompt}},
		{"llm.usage.prompt_tokens", binding{field: fieldPrompt}},
		{"gen_ai.usage.output_tokens", binding{field: fieldOutput}},
		{"gen_ai.usage.completion_tokens", binding{field: fieldOutput}},
		{"llm.usage.completion_tokens", binding{field: fieldOutput}},
		{"gen_ai.usage.cache_read.input_tokens", binding{field: fieldCached}},
		{"gen_ai.usage.cache_read_input_tokens", binding{field: fieldCached}},
		{"gen_ai.usage.reasoning.output_tokens", binding{field: fieldReasoning}},
		{"gen_ai.response.model", binding{field: fieldModel}},
		{"gen_ai.request.model", binding{field: fieldModelAsked}},
		{"gen_ai.request.max_tokens", binding{field: fieldMaxTokens}},
		{"gen_ai.request.temperature", binding{field: fieldTemperature}},
		{"gen_ai.request.choice.count", binding{field: fieldChoices}},
		{"gen_ai.request.n", binding{field: fieldChoices}},
		{"gen_ai.request.stream", binding{field: fieldStream}},
		{"llm.is_streaming", binding{field: fieldStream}},
		{"gen_ai.conversation.id", binding{field: fieldSession}},
		{"session.id", binding{field: fieldSession}},
		{"enduser.id", binding{field: fieldUser}},
		{"user.id", binding{field: fieldUser}},
		{"client.address", binding{field: fieldClient}},
		{"gen_ai.response.finish_reasons", binding{field: fieldFinish}},
		{"error.type", binding{field: fieldError}},
		{"http.response.status_code", binding{field: fieldStatus}},
		{"gen_ai.operation.name", binding{field: fieldKind}},
		{"gen_ai.request.id", binding{field: fieldRequestID}},
	} {
		a.bind.rank = rank[a.bind.field]
		rank[a.bind.field]++
		m[a.name] = &a.bind
	}
	return m
}()

type otlp struct {
	assembler
	vllm bool
	out  capture.Logged
	cap  Capability
}

func newOTLP(s *Sample, o *Options, vllm bool) (Parser, error) {
	source, ttft := traceformat.SourceUsage, traceformat.TTFTGateway
	if vllm {
		source, ttft = traceformat.SourceEngine, traceformat.TTFTEngine
	}
	p := &otlp{assembler: newAssembler(o, source, ttft), vllm: vllm}
	probed := newProbed()
	sampled := false
	for _, b := range s.Records {
		_ = p.spans(b, func(sp *otlpSpan) {
			if sp.genai {
				probed.add(&sp.rec)
				sampled = sampled || bytes.Contains(sp.state, []byte("th:"))
			}
		})
	}
	p.cap = probed.capability(&p.assembler)
	if sampled {
		p.cap.Notes = append(p.cap.Notes, "the spans were sampled (tracestate th): say which share with --source-sampling, or rates are too low by as much")
	} else {
		p.cap.Notes = append(p.cap.Notes, "if these spans were sampled, say which share with --source-sampling: a file does not tell")
	}
	return p, probed.check(o)
}

func (p *otlp) Capability() Capability { return p.cap }
func (p *otlp) Flush(*Emitter)         {}

// A otlpSpan is one span, by field.
type otlpSpan struct {
	rec   record
	name  []byte
	state []byte // its tracestate
	genai bool
	vllm  bool
}

// spans yields the spans of one OTLP message.
func (p *otlp) spans(b []byte, yield func(*otlpSpan)) error {
	j := jsonscan.New(b)
	if !j.Enter('{') {
		return errJSON
	}
	var s otlpSpan
	walk(&j, []string{"resourceSpans", "resource_spans"}, func() {
		walk(&j, []string{"scopeSpans", "scope_spans", "instrumentationLibrarySpans"}, func() {
			walk(&j, []string{"spans"}, func() {
				s = otlpSpan{}
				s.read(&j)
				if !j.Bad() {
					yield(&s)
				}
			})
		})
	})
	if j.Peek(); j.Bad() || j.Rest() != 0 {
		return errJSON
	}
	return nil
}

// walk goes through the members of an object that was entered and calls each for
// every object in the arrays of the given names, having entered it.
func walk(j *jsonscan.Parser, names []string, each func()) {
	for name, ok := j.Key(); ok; name, ok = j.Key() {
		known := false
		for _, n := range names {
			known = known || string(name) == n
		}
		if !known || j.Peek() != '[' || !j.Enter('[') {
			j.Skip()
			continue
		}
		for j.Elem() {
			if j.Peek() == '{' && j.Enter('{') {
				each()
			} else {
				j.Skip()
			}
		}
	}
}

var (
	otlpStart = &binding{field: fieldStart, unit: unitNano}
	otlpEnd   = &binding{field: fieldEnd, unit: unitNano}
	otlpCode  = &binding{field: fieldResult}
)

// read reads the members of a span that was entered.
func (s *otlpSpan) read(j *jsonscan.Parser) {
	for name, ok := j.Key(); ok; name, ok = j.Key() {
		switch string(name) {
		case "name":
			s.name = j.Text()
		case "traceState", "trace_state":
			s.state = j.Text()
		case "startTimeUnixNano", "start_time_unix_nano":
			s.rec.putJSON(otlpStart, j.Value())
		case "endTimeUnixNano", "end_time_unix_nano":
			s.rec.putJSON(otlpEnd, j.Value())
		case "status":
			if j.Peek() != '{' || !j.Enter('{') {
				j.Skip()
				break
			}
			for key, ok := j.Key(); ok; key, ok = j.Key() {
				if string(key) == "code" {
					s.rec.putJSON(otlpCode, j.Value())
				} else {
					j.Skip() // the message may quote anything
				}
			}
		case "attributes":
			if j.Peek() != '[' || !j.Enter('[') {
				j.Skip()
				break
			}
			for j.Elem() {
				s.attribute(j)
			}
		default:
			j.Skip()
		}
	}
}

// attribute reads {"key":...,"value":{"intValue":...}}.
func (s *otlpSpan) attribute(j *jsonscan.Parser) {
	if j.Peek() != '{' || !j.Enter('{') {
		j.Skip()
		return
	}
	var key, val []byte
	for name, ok := j.Key(); ok; name, ok = j.Key() {
		switch string(name) {
		case "key":
			key = j.Text()
		case "value":
			val = j.Value()
		default:
			j.Skip()
		}
	}
	if j.Bad() {
		return
	}
	if bytes.HasPrefix(key, []byte("gen_ai.")) || bytes.HasPrefix(key, []byte("llm.")) {
		s.genai = true
		s.vllm = s.vllm || bytes.HasPrefix(key, []byte("gen_ai.latency."))
	}
	bind, ok := otlpAttributes[string(key)]
	if !ok {
		return
	}
	v := jsonscan.New(val)
	if !v.Enter('{') {
		return
	}
	for name, ok := v.Key(); ok; name, ok = v.Key() {
		if string(name) == "arrayValue" || string(name) == "array_value" {
			// Of a list the first element: one answer has one reason.
			if v.Peek() == '{' && v.Enter('{') {
				walk(&v, []string{"values"}, func() {
					for _, ok := v.Key(); ok; _, ok = v.Key() {
						s.rec.putJSON(bind, v.Value())
					}
				})
			}
			continue
		}
		s.rec.putJSON(bind, v.Value())
	}
}

func (p *otlp) Parse(b []byte, e *Emitter) error {
	var bad error
	err := p.spans(b, func(s *otlpSpan) {
		if err := p.span(s, e); err != nil && bad == nil {
			bad = err
		}
	})
	if err != nil {
		return err
	}
	return bad
}

// operations are the kinds of spans that are requests to a model.
var operations = map[string]string{
	"chat": traceformat.EndpointChat, "text_completion": traceformat.EndpointCompletions, "completion": traceformat.EndpointCompletions,
	"generate_content": traceformat.EndpointChat, "embeddings": traceformat.EndpointEmbeddings, "embedding": traceformat.EndpointEmbeddings,
	"message": traceformat.EndpointMessages, "response": traceformat.EndpointResponses, "": "",
}

func (p *otlp) span(s *otlpSpan, e *Emitter) error {
	endpoint, known := operations[strings.ToLower(s.rec.text(fieldKind))]
	switch {
	case !s.genai || !known, s.rec.text(fieldKind) == "" && !s.rec.has(fieldPrompt) && !s.rec.has(fieldModelAsked) && !s.vllm:
		e.Drop(reasonNotRequest, 1) // tools, agents, and the rest of an application
		return nil
	case p.vllm && !s.vllm:
		// The application's span of a request that the engine has one of too.
		e.Drop(capture.ReasonDuplicate, 1)
		return nil
	}
	l := &p.out
	*l = capture.Logged{}
	if reason, err := p.request(&s.rec, l); err != nil || reason != "" {
		if reason != "" {
			e.Drop(reason, 1)
		}
		return err
	}
	if l.Row.Endpoint == "" {
		l.Row.Endpoint = endpoint
	}
	if l.Row.Result == "" && !s.rec.has(fieldError) {
		l.Row.Result = traceformat.ResultOK
	}
	if d, ok := l.Row.E2E.Get(); ok && d == 0 {
		l.Row.E2E = traceformat.Opt[time.Duration]{}
	}
	e.Record(l)
	return nil
}
