package proxylog

import (
	"bytes"
	"errors"
	"strings"

	"reprise/capture"
	"reprise/traceformat"
)

// Envoy writes a line when a request ends; START_TIME is its first byte.
// Operators choose the keys of the JSON; the names here are those of the
// operators that Envoy's documentation uses, lower case, and a mapping does for
// others. Source: Envoy's "Access logging", command operators.
var envoyDialect = &Dialect{
	Name: "envoy", Title: "Envoy, JSON", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.json() < 50 || !s.keys("start_time") {
			return 0
		}
		if s.anyKey("response_flags", "response_code_details", "upstream_cluster", "x_envoy_upstream_service_time", "upstream_host", "upstream_transport_failure_reason") {
			return 80
		}
		return 0
	},
	New: newEnvoy(nil),
}

// The Envoy AI Gateway logs usage by way of dynamic metadata under the names of
// OpenTelemetry. Source: envoyproxy/ai-gateway, examples/access-log/basic.yaml.
var envoyGatewayDialect = &Dialect{
	Name: "envoy-ai-gateway", Title: "Envoy AI Gateway", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.json() < 50 || !s.keys("start_time") {
			return 0
		}
		if s.anyKey("gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.provider.name", "mcp.method.name") {
			return 95
		}
		return 0
	},
	New: newEnvoy(func(t *tabled) {
		t.skip = func(r *record) string {
			if r.has(fieldKind) {
				return reasonNotRequest // a call of a tool, by MCP
			}
			return ""
		}
	}),
}

func newEnvoy(hooks func(*tabled)) func(*Sample, *Options) (Parser, error) {
	return func(s *Sample, o *Options) (Parser, error) {
		return newTabled(s, newAssembler(o, traceformat.SourceUsage, traceformat.TTFTGateway), envoyKeys(), hooks)
	}
}

func envoyKeys() []key {
	keys := []key{
		{`start_time`, binding{field: fieldStart}},
		{`ttft_us`, binding{field: fieldTTFT, unit: unitMicro}}, // COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)
		{`ttft_ms`, binding{field: fieldTTFT, unit: unitMilli}},
		{`e2e_us`, binding{field: fieldDuration, unit: unitMicro}},
		{`duration`, binding{field: fieldDuration, unit: unitMilli}},
		{`duration_ms`, binding{field: fieldDuration, unit: unitMilli}},
		{`response_duration`, binding{field: fieldHeaderTime, unit: unitMilli}},
		{`mcp\.method\.name`, binding{field: fieldKind}},
	}
	for f, names := range map[field][]string{
		fieldMethod: {"method", "request_method", ":method"},
		fieldPath:   {"x-envoy-origin-path", "x-envoy-original-path", "x_envoy_original_path", "path", "request.path", "request_path", ":path", "uri"},
		fieldStatus: {"response_code", "status", "status_code"},
		fieldFlags:  {"response_flags", "flags"},
		fieldClient: {"x-forwarded-for", "x_forwarded_for", "downstream_remote_address_without_port", "downstream_remote_address",
			"downstream_direct_remote_address", "client_ip"},
		fieldSession:    {"session.id", "agent-session-id", "session_id", "x-session-id"},
		fieldUser:       {"user.id", "x-user-id", "user_id"},
		fieldModel:      {"gen_ai.response.model"},
		fieldModelAsked: {"gen_ai.request.model", "x-ai-eg-model", "x_ai_eg_model", "model"},
		fieldPrompt:     {"gen_ai.usage.input_tokens", "llm_input_token", "input_tokens", "prompt_tokens"},
		fieldOutput:     {"gen_ai.usage.output_tokens", "llm_output_token", "output_tokens", "completion_tokens"},
		fieldReasoning:  {"gen_ai.usage.reasoning_tokens", "llm_reasoning_token", "reasoning_tokens"},
		fieldCached: {"gen_ai.usage.cached_input_tokens", "gen_ai.usage.cache_read.input_tokens", "llm_cached_input_token",
			"cached_input_tokens", "cached_tokens"},
		fieldAttempts: {"upstream_request_attempt_count"},
	} {
		for _, n := range names {
			keys = append(keys, key{strings.ReplaceAll(n, ".", `\.`), binding{field: f}})
		}
	}
	return keys
}

// envoyEnding reads response flags, short or long, several separated by commas.
// Source: Envoy's "Access logging", RESPONSE_FLAGS.
func envoyEnding(flags []byte, row *traceformat.Row) {
	for flag := range bytes.SplitSeq(flags, []byte(",")) {
		switch string(bytes.TrimSpace(flag)) {
		case "DC", "DownstreamConnectionTermination", "DR", "DownstreamRemoteReset":
			row.Result, row.Error = traceformat.ResultClientAbort, ""
			return
		case "UT", "UpstreamRequestTimeout", "SI", "StreamIdleTimeout", "DT", "DurationTimeout", "UMSDR", "UpstreamMaxStreamDurationReached":
			row.Result, row.Error = traceformat.ResultTimeout, "upstream_timeout"
		case "UC", "UpstreamConnectionTermination", "UR", "UpstreamRemoteReset", "UPE", "UpstreamProtocolError", "LR", "LocalReset":
			row.Result, row.Error = traceformat.ResultServerError, "upstream_reset"
		case "UF", "UpstreamConnectionFailure", "UH", "NoHealthyUpstream", "NC", "NoClusterFound", "URX", "UpstreamRetryLimitExceeded":
			row.Result, row.Error = traceformat.ResultServerError, "upstream_unreachable"
		case "UO", "UpstreamOverflow", "RL", "RateLimited", "RLSE", "RateLimitServiceError", "OM", "OverloadManagerTerminated", "UAEX",
			"UnauthorizedExternalService", "NR", "NoRouteFound", "DPE", "DownstreamProtocolError", "IH", "InvalidEnvoyRequestHeaders":
			row.Result, row.Error = traceformat.ResultRejected, "proxy_denied"
		}
	}
}

// Envoy's default format of text:
//
//	[START_TIME] "METHOD PATH PROTOCOL" CODE FLAGS [details...] RECEIVED SENT
//	DURATION UPSTREAM_SERVICE_TIME "X-FORWARDED-FOR" "USER-AGENT" "X-REQUEST-ID"
//	"AUTHORITY" "UPSTREAM_HOST"
//
// Istio's has details and a failure reason, quoted or not, before the bytes.
var envoyTextDialect = &Dialect{
	Name: "envoy-text", Title: "Envoy or Istio, text", Vantage: "proxy",
	Detect: func(s *Sample) int {
		var l envoyLine
		return s.share(func(b []byte) bool { return l.parse(b) == nil }) * 9 / 10
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		p := &envoyText{assembler: newAssembler(o, "", "")}
		probe := probe(s, p.fields)
		p.cap = probe.capability(&p.assembler)
		p.cap.Notes = append(p.cap.Notes, "the default format knows no TTFT and no tokens: log JSON with COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us) as ttft_us")
		return p, probe.check(o)
	},
}

type envoyText struct {
	assembler
	line envoyLine
	rec  record
	out  capture.Logged
	cap  Capability
}

func (p *envoyText) Capability() Capability { return p.cap }
func (p *envoyText) Flush(*Emitter)         {}

func (p *envoyText) Parse(b []byte, e *Emitter) error {
	p.rec.reset()
	if err := p.fields(b, &p.rec); err != nil {
		return err
	}
	return p.emit(&p.rec, &p.out, e)
}

var (
	envoyStart    = &binding{field: fieldStart}
	envoyFlags    = &binding{field: fieldFlags}
	envoyDuration = &binding{field: fieldDuration, unit: unitMilli}
)

func (p *envoyText) fields(b []byte, r *record) error {
	l := &p.line
	if err := l.parse(b); err != nil {
		return err
	}
	r.put(envoyStart, l.start, false)
	r.put(clfRequest, l.request, false)
	r.put(clfStatus, l.status, false)
	r.put(envoyFlags, l.flags, false)
	r.put(envoyDuration, l.duration, false)
	r.put(clfClient, l.client, false)
	return nil
}

type envoyLine struct {
	start, request, status, flags, duration, client []byte
}

var errEnvoy = errors.New("is no line of Envoy's default format")

func (l *envoyLine) parse(b []byte) error {
	*l = envoyLine{}
	var ok bool
	if len(b) == 0 || b[0] != '[' {
		return errEnvoy
	}
	if l.start, b, ok = bytes.Cut(b[1:], []byte(`] "`)); !ok {
		return errEnvoy
	}
	if _, isISO := parseISO(l.start); !isISO {
		if _, _, isNumber := epoch(l.start, unitAuto); !isNumber {
			return errEnvoy
		}
	}
	if l.request, b, ok = quotedText(b); !ok {
		return errEnvoy
	}
	var words [16][]byte
	n := 0
	for len(b) > 0 && n < len(words) {
		b = bytes.TrimLeft(b, " ")
		if len(b) > 0 && b[0] == '"' {
			if words[n], b, ok = quotedText(b[1:]); !ok {
				return errEnvoy
			}
		} else if words[n], b, _ = bytes.Cut(b, []byte(" ")); len(words[n]) == 0 {
			continue
		}
		n++
	}
	if n < 6 {
		return errEnvoy
	}
	l.status, l.flags = words[0], words[1]
	if code, ok := atoi(l.status); !ok || code > 599 {
		return errEnvoy
	}
	// Behind details of any number come three numbers: received, sent, duration.
	for i := 2; i+4 < n; i++ {
		_, a := atoi64(words[i])
		_, s := atoi64(words[i+1])
		_, d := atoi64(words[i+2])
		if a && s && d {
			l.duration, l.client = words[i+2], words[i+4]
			return nil
		}
	}
	return errEnvoy
}

func atoi64(b []byte) (int64, bool) {
	v, ok := fixed(b, 0)
	return v, ok && bytes.IndexByte(b, '.') < 0
}
