package proxylog

import (
	"bytes"
	"errors"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// SGLang's --export-metrics-to-file: a line a finished request. Its
// request_parameters may hold the prompt, which is stepped over. Lines of
// SGLang 0.5.23.
var sglangMetricsDialect = &Dialect{
	Name: "sglang-metrics", Title: "SGLang, request metrics file", Vantage: "server",
	Detect: func(s *Sample) int {
		if s.json() >= 50 && s.keys("request_parameters", "id", "finish_reason") {
			return 97
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		keys := append(sglangMeta(""), sglangParams("request_parameters.")...)
		t, err := newTabled(s, newAssembler(o, traceformat.SourceEngine, traceformat.TTFTEngine), keys, func(t *tabled) { t.fix = sglangFix })
		if t == nil {
			return nil, err
		}
		t.cap.Aborts = true
		if t.cap.Arrival == 0 {
			return nil, errors.Join(err, errors.New("the file has no request_received_ts: run SGLang with --enable-metrics beside --export-metrics-to-file"))
		}
		return t, err
	},
}

// sglangMeta reads meta_info, which lies at prefix.
func sglangMeta(prefix string) []key {
	return []key{
		{prefix + "request_received_ts", binding{field: fieldStart, unit: unitSecond}},
		{prefix + "e2e_latency", binding{field: fieldDuration, unit: unitSecond}},
		{prefix + "first_token_latency", binding{field: fieldTTFT, unit: unitSecond}},
		{prefix + "queue_time", binding{field: fieldQueue, unit: unitSecond}},
		{prefix + "prompt_tokens", binding{field: fieldPrompt}},
		{prefix + "completion_tokens", binding{field: fieldOutput}},
		{prefix + "cached_tokens", binding{field: fieldCached}},
		{prefix + "reasoning_tokens", binding{field: fieldReasoning}},
		{prefix + "finish_reason.type", binding{field: fieldFinish}},
		{prefix + "finish_reason.status_code", binding{field: fieldStatus}},
	}
}

// sglangParams reads the limits of a request, which lie at prefix.
func sglangParams(prefix string) []key {
	return []key{
		{prefix + "sampling_params.max_new_tokens", binding{field: fieldMaxTokens}},
		{prefix + "sampling_params.temperature", binding{field: fieldTemperature}},
		{prefix + "sampling_params.n", binding{field: fieldChoices}},
		{prefix + "stream", binding{field: fieldStream}},
		{prefix + "session_params.id", binding{field: fieldSession}},
		{prefix + "session_id", binding{field: fieldSession}},
		{prefix + "conversation_id", binding{field: fieldSession}},
	}
}

// sglangFix tells the aborts of clients from those of the engine, which have a
// status.
func sglangFix(r *record, l *capture.Logged) {
	if s, ok := l.Row.Status.Get(); ok && s >= 400 && l.Row.FinishReason == "abort" {
		l.Row.Result, l.Row.Error = statusResult(int(s))
		l.Row.E2E, l.Row.Abort = l.Row.Abort, traceformat.Opt[time.Duration]{}
	}
	l.Row.Status = traceformat.Opt[int16]{} // of the engine, not of an answer
}

// SGLang's --log-requests, as JSON or text:
//
//	[2026-11-23 09:49:39] {"timestamp": ..., "event": "request.finished", "rid": ..., "obj": {...}, "out": {"meta_info": {...}}}
//	[2026-11-23 09:49:39] Finish: obj=GenerateReqInput(...), out={... 'meta_info': {...}}
//
// At its default level 2 the log holds prompts and answers: of those nothing is
// read. The text is a Python repr, of which meta_info alone is looked at.
var sglangLogDialect = &Dialect{
	Name: "sglang-log", Title: "SGLang, --log-requests", Vantage: "server",
	Detect: func(s *Sample) int {
		n := s.share(func(b []byte) bool {
			_, body := sglangLine(b)
			return bytes.Contains(body, []byte(`"event": "request.`)) || bytes.HasPrefix(body, []byte("Receive: obj=")) || bytes.HasPrefix(body, []byte("Finish: obj="))
		})
		if n > 0 {
			return 90
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		p := &sglangLog{assembler: newAssembler(o, traceformat.SourceEngine, traceformat.TTFTEngine), waiting: waitingRequests{}}
		keys := append(sglangMeta("out.meta_info."), sglangParams("obj.")...)
		p.table = newTable(append(keys, []key{
			{"timestamp", binding{field: fieldEnd, unit: unitISO}},
			{"event", binding{field: fieldKind}},
			{"rid", binding{field: fieldRequestID}},
		}...))
		probed := newProbed()
		for _, b := range s.Records {
			var r record
			if ok, err := p.fields(b, &r); ok && err == nil && r.text(fieldKind) == "request.finished" {
				if r.has(fieldStart) {
					r.set &^= 1 << fieldEnd // its zone is not needed
				}
				probed.add(&r)
			}
		}
		if probed.n == 0 && o.Zone == nil {
			return nil, &NeedError{"SGLang's times name no zone", "--tz ZONE"}
		}
		p.cap = probed.capability(&p.assembler)
		if probed.n == 0 {
			p.cap.ArrivalFrom, p.cap.Arrival = "start", time.Microsecond
		}
		p.cap.Aborts = true
		p.cap.Notes = append(p.cap.Notes,
			"level 2, SGLang's default, writes prompts and answers into this log: nothing of them is kept here, but the log itself holds them (--log-requests-level 0)",
			"with SGLANG_LOG_REQUEST_EXCEEDED_MS set, fast requests are missing from this log")
		if probed.n == 0 {
			return p, nil
		}
		return p, probed.check(o)
	},
}

type sglangLog struct {
	assembler
	table   *table
	rec     record
	out     capture.Logged
	cap     Capability
	waiting waitingRequests
}

func (p *sglangLog) Capability() Capability { return p.cap }

// sglangLine cuts the stamp off a line.
func sglangLine(b []byte) (stamp, body []byte) {
	if len(b) > 22 && b[0] == '[' {
		if i := bytes.Index(b[:min(len(b), 64)], []byte("] ")); i > 0 {
			return b[1:i], b[i+2:]
		}
	}
	return nil, b
}

var (
	sglangEnd    = &binding{field: fieldEnd, unit: unitISO}
	sglangEvent  = &binding{field: fieldKind}
	sglangFinish = []byte("request.finished")
)

// fields reads a line; ok is false for one that says nothing of a request.
func (p *sglangLog) fields(b []byte, r *record) (ok bool, err error) {
	stamp, body := sglangLine(b)
	switch {
	case len(body) > 0 && body[0] == '{':
		if err := p.table.object(body, r); err != nil {
			return false, err
		}
		return r.has(fieldKind) && bytes.HasPrefix(r.bytes(fieldKind), []byte("request.")), nil
	case bytes.HasPrefix(body, []byte("Finish: obj=")):
		i := bytes.LastIndex(body, []byte("'meta_info': {"))
		if i < 0 {
			return false, errShort
		}
		r.put(sglangEnd, stamp[:min(19, len(stamp))], false)
		r.put(sglangEvent, sglangFinish, false)
		reprMeta(body[i+len("'meta_info': {"):], r)
		return true, nil
	}
	return false, nil
}

var reprKeys = sglangMeta("")

// reprMeta reads what follows "'meta_info': {" in a Python repr: numbers behind
// the keys that are known, and the type of finish_reason.
func reprMeta(b []byte, r *record) {
	for i := range reprKeys {
		k := &reprKeys[i]
		name := k.path
		var mark []byte
		switch name {
		case "finish_reason.type":
			mark = []byte("'finish_reason': {'type': ")
		case "finish_reason.status_code":
			continue
		default:
			mark = append(append([]byte("'"), name...), "': "...)
		}
		_, after, ok := bytes.Cut(b, mark)
		if !ok {
			continue
		}
		v := after
		if end := bytes.IndexAny(v, ",}"); end >= 0 {
			v = v[:end]
		}
		if v = bytes.Trim(v, "' "); string(v) != "None" {
			r.put(&k.bind, v, false)
		}
	}
}

func (p *sglangLog) Parse(b []byte, e *Emitter) error {
	r := &p.rec
	r.reset()
	ok, err := p.fields(b, r)
	switch {
	case err != nil:
		return err
	case !ok:
		e.Drop(reasonNotRequest, 1)
		return nil
	}
	rid := r.text(fieldRequestID)
	if len(rid) >= 6 && rid[:6] == "HEALTH" {
		e.Drop(capture.ReasonHealthCheck, 1)
		return nil
	}
	p.out = capture.Logged{}
	switch r.text(fieldKind) {
	case "request.finished":
		if !r.has(fieldDuration) {
			return errNoDuration
		}
		if _, err := p.request(r, &p.out); err != nil {
			return err
		}
		sglangFix(r, &p.out)
		if p.waiting.take(rid) != nil {
			e.Drop(reasonJoined, 1)
		}
		e.Record(&p.out)
	case "request.received":
		// What is never finished in this log was cut off by its end.
		at, _, ok := r.stamp(fieldEnd, &p.clock)
		if !ok || rid == "" {
			e.Drop(reasonNotRequest, 1)
			return nil
		}
		p.out.Arrival = at
		p.limits(r, &p.out)
		p.identity(r, &p.out)
		p.out.Row.Result = traceformat.ResultTruncated
		p.waiting.put(rid, &p.out, e)
	default:
		e.Drop(reasonNotRequest, 1)
	}
	return nil
}

func (p *sglangLog) Flush(e *Emitter) { p.waiting.flush(e) }

// reasonJoined counts lines that belong to a request that another line recorded.
const reasonJoined = "joined"
