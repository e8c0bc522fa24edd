package proxylog

import (
	"errors"
	"strings"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// nginx writes a line when a request ends. $msec is that moment and
// $request_time counts from the first byte of the request, both in steps of
// 1 ms.
//
// Sources: ngx_http_log_module, ngx_http_upstream_module, ngx_http_core_module.
var nginxDialect = &Dialect{
	Name: "nginx", Title: "nginx, JSON or a log_format", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.json() < 50 {
			return 0
		}
		t := nginxTable(nil)
		got := map[field]bool{}
		for name := range s.objects[0] {
			if b := t.guess(name); b != nil {
				got[b.field] = true
			}
		}
		// The names alone could be anybody's; the variables that only nginx has
		// decide.
		own := s.anyKey("request_completion", "msec", "upstream_header_time", "upstream_response_time", "upstream_connect_time", "body_bytes_sent", "time_iso8601",
			"time_local", "upstream_addr", "upstream_status", "uht", "urt")
		switch {
		case got[fieldEnd] && got[fieldDuration] && own:
			return 90
		case got[fieldEnd] && own:
			return 60
		}
		return 0
	},
	New: newNginx,
}

// nginxVariables are the variables that say something of a request.
var nginxVariables = map[string]binding{
	"msec":                    {field: fieldEnd, unit: unitSecond},
	"time_iso8601":            {field: fieldEnd, unit: unitISO, rank: 1},
	"time_local":              {field: fieldEnd, unit: unitCLF, rank: 2},
	"request_time":            {field: fieldDuration, unit: unitSecond},
	"upstream_header_time":    {field: fieldHeaderTime, unit: unitSecond},
	"upstream_response_time":  {field: fieldUpstreamTime, unit: unitSecond},
	"request_method":          {field: fieldMethod},
	"request_uri":             {field: fieldPath},
	"uri":                     {field: fieldPath, rank: 1},
	"request":                 {field: fieldRequestLine},
	"status":                  {field: fieldStatus},
	"upstream_status":         {field: fieldUpstream},
	"upstream_addr":           {field: fieldUpstream, rank: 1},
	"request_completion":      {field: fieldComplete},
	"http_x_forwarded_for":    {field: fieldClient},
	"remote_addr":             {field: fieldClient, rank: 1},
	"binary_remote_addr":      {field: fieldClient, rank: 2},
	"remote_user":             {field: fieldUser},
	"http_x_session_id":       {field: fieldSession},
	"http_x_conversation_id":  {field: fieldSession, rank: 1},
	"http_x_model":            {field: fieldModelAsked},
	"sent_http_x_model":       {field: fieldModel},
	"upstream_http_x_model":   {field: fieldModel, rank: 1},
	"llm_model":               {field: fieldModel, rank: 2}, // this and the next: Apache APISIX, ai-proxy
	"request_llm_model":       {field: fieldModelAsked, rank: 1},
	"llm_prompt_tokens":       {field: fieldPrompt},
	"llm_completion_tokens":   {field: fieldOutput},
	"llm_time_to_first_token": {field: fieldTTFT, unit: unitMilli},
}

// nginxNames are what operators call the variables, where that is not the
// variable's own name. Names are compared without case and punctuation.
var nginxNames = map[string]string{
	"time": "", "timestamp": "", "ts": "", "@timestamp": "", "date": "", "datetime": "",
	"time_msec": "msec", "msec_time": "msec", "timestamp_ms": "msec", "epoch": "msec", "time_unix": "msec",
	"iso8601": "time_iso8601", "timeiso8601": "time_iso8601", "timelocal": "time_local",
	"rt": "request_time", "duration": "request_time", "request_duration": "request_time", "responsetime": "request_time",
	"response_time": "request_time", "latency": "request_time", "elapsed": "request_time",
	"uht": "upstream_header_time", "urt": "upstream_response_time", "upstream_time": "upstream_response_time",
	"upstream_duration": "upstream_response_time",
	"method":            "request_method", "verb": "request_method", "http_method": "request_method",
	"path": "request_uri", "url": "request_uri", "request_path": "request_uri", "uri_path": "request_uri",
	"request_line": "request", "status_code": "status", "code": "status", "response_code": "status", "response_status": "status",
	"http_status": "status",
	"completion":  "request_completion", "completed": "request_completion", "complete": "request_completion", "done": "request_completion", "upstream": "upstream_addr",
	"client": "remote_addr", "client_ip": "remote_addr", "remote_ip": "remote_addr", "ip": "remote_addr", "clientip": "remote_addr",
	"remote_address": "remote_addr", "x_forwarded_for": "http_x_forwarded_for", "xff": "http_x_forwarded_for",
	"forwarded_for": "http_x_forwarded_for", "user": "remote_user", "session_id": "http_x_session_id", "session": "http_x_session_id",
	"conversation_id": "http_x_conversation_id", "model": "http_x_model",
}

func plainName(name string) string {
	name = strings.ToLower(strings.TrimLeft(name, "$@_"))
	return strings.TrimPrefix(strings.NewReplacer("-", "_", ".", "_", " ", "_").Replace(name), "nginx_")
}

// nginxTable reads JSON by the keys of a log_format, where one is given, and
// else by names.
func nginxTable(variables map[string]string) *table {
	t := newTable(nil)
	t.guess = func(name string) *binding {
		variable, known := variables[name]
		if variables != nil && !known {
			return nil
		}
		if variables == nil {
			variable = plainName(name)
			if to, ok := nginxNames[variable]; ok {
				variable = to
				if to == "" { // a stamp in whatever spelling
					return &binding{field: fieldEnd, unit: unitAuto, rank: 3}
				}
			}
		}
		if b, ok := nginxVariables[variable]; ok {
			return &b
		}
		return nil
	}
	return t
}

type nginx struct {
	assembler
	table *table
	text  *textFormat // of a log_format that is no JSON
	rec   record
	out   capture.Logged
	cap   Capability
}

func newNginx(s *Sample, o *Options) (Parser, error) {
	n := &nginx{assembler: newAssembler(o, traceformat.SourceUsage, traceformat.TTFTGateway)}
	var variables map[string]string
	if o.LogFormat != "" {
		format, err := nginxLogFormat(o.LogFormat)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(strings.TrimSpace(format), "{") {
			if variables, err = nginxKeys(format); err != nil {
				return nil, err
			}
		} else if n.text, err = newTextFormat(format, nginxVariables); err != nil {
			return nil, err
		}
	}
	n.table = nginxTable(variables)
	p := probe(s, n.fields)
	n.cap = p.capability(&n.assembler)
	if p.has[fieldComplete] {
		n.cap.Aborts = true
	} else {
		n.cap.Notes = append(n.cap.Notes, "without $request_completion an answer that the client gave up is not told from a short one (status 499 is)")
	}
	if n.cap.Arrival >= time.Second && p.has[fieldDuration] {
		n.cap.Notes = append(n.cap.Notes, "stamps are whole seconds: add $msec to the log_format")
	}
	return n, p.check(o)
}

func (n *nginx) Capability() Capability { return n.cap }

func (n *nginx) fields(line []byte, r *record) error {
	if n.text != nil {
		return n.text.parse(line, r)
	}
	return n.table.object(line, r)
}

func (n *nginx) Parse(line []byte, e *Emitter) error {
	n.rec.reset()
	if err := n.fields(line, &n.rec); err != nil {
		return err
	}
	if n.text == nil && n.rec.has(fieldRequestLine) && !n.rec.vals[fieldRequestLine].quoted {
		return errForeign
	}
	return n.emit(&n.rec, &n.out, e)
}

// errForeign is a line of Caddy or Kong among nginx's: keys of the same name
// would be taken for what they are not.
var errForeign = errors.New("has no request line where nginx writes one: is it of another dialect?")

func (n *nginx) Flush(*Emitter) {}

// nginxLogFormat takes the format out of a log_format directive, joined over
// its quoted pieces; text without the directive is a format itself.
func nginxLogFormat(text string) (string, error) {
	_, after, ok := strings.Cut(text, "log_format")
	if !ok {
		return text, nil
	}
	rest := after
	if j := strings.Index(rest, "log_format"); j >= 0 && strings.ContainsAny(rest[:j], ";") {
		return "", errors.New("--log-format holds several log_format directives: give the one that wrote the log")
	}
	var b strings.Builder
	for {
		j := strings.IndexAny(rest, `'";`)
		if j < 0 || rest[j] == ';' {
			break
		}
		quote := rest[j]
		rest = rest[j+1:]
		for len(rest) > 0 && rest[0] != quote {
			if rest[0] == '\\' && len(rest) > 1 {
				rest = rest[1:]
			}
			b.WriteByte(rest[0])
			rest = rest[1:]
		}
		if rest == "" {
			return "", errors.New("--log-format: a quote is not closed")
		}
		rest = rest[1:]
	}
	if b.Len() == 0 {
		return "", errors.New("--log-format: no format in quotes after log_format")
	}
	return b.String(), nil
}

// nginxKeys finds "key":"$variable" in a format of JSON.
func nginxKeys(format string) (map[string]string, error) {
	keys := map[string]string{}
	for rest := format; ; {
		i := strings.IndexByte(rest, '"')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		j := strings.IndexByte(rest, '"')
		if j < 0 {
			break
		}
		name := rest[:j]
		rest = strings.TrimLeft(rest[j+1:], " ")
		if !strings.HasPrefix(rest, ":") {
			continue
		}
		rest = strings.TrimLeft(rest[1:], " ")
		quoted := strings.HasPrefix(rest, `"`)
		rest = strings.TrimPrefix(rest, `"`)
		if variable, after := variableAt(rest); variable != "" {
			keys[name] = variable
			rest = after
		}
		if quoted {
			if k := strings.IndexByte(rest, '"'); k >= 0 {
				rest = rest[k+1:]
			}
		}
	}
	if len(keys) == 0 {
		return nil, errors.New(`--log-format: no "key":"$variable" in it`)
	}
	return keys, nil
}

// variableAt returns the variable that s begins with, and what follows.
func variableAt(s string) (name, rest string) {
	if !strings.HasPrefix(s, "$") {
		return "", s
	}
	s = s[1:]
	brace := strings.HasPrefix(s, "{")
	s = strings.TrimPrefix(s, "{")
	n := 0
	for n < len(s) && (s[n] == '_' || s[n] >= '0' && s[n] <= '9' || s[n]|0x20 >= 'a' && s[n]|0x20 <= 'z') {
		n++
	}
	name, rest = s[:n], s[n:]
	if brace {
		rest = strings.TrimPrefix(rest, "}")
	}
	return name, rest
}
