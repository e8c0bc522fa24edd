package proxylog

import (
	"bytes"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// vLLM's own log, the last resort: --enable-log-requests writes one line when a
// request arrives, in whole seconds without year and zone, and its limits. Lengths
// are there at DEBUG alone, where the ids of the tokens are; they are counted and
// not kept. --enable-log-outputs adds the end and why it came.
//
//	(APIServer pid=1) INFO 11-23 09:55:18 [logger.py:65] Received request cmpl-1-0: params: SamplingParams(n=1, ..., max_tokens=5, ...)
//
// Lines of vLLM 0.32.0; request_logger.py.
var vllmDialect = &Dialect{
	Name: "vllm-log", Title: "vLLM, --enable-log-requests", Vantage: "server",
	Detect: func(s *Sample) int {
		n := s.share(func(b []byte) bool {
			return bytes.Contains(b, []byte("] Received request ")) && bytes.Contains(b, []byte("params: "))
		})
		if n > 0 {
			return 85
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		p := &vllmLog{assembler: newAssembler(o, traceformat.SourceEngine, ""), lengths: map[string]int32{}}
		p.cap = Capability{
			Arrival: time.Second, ArrivalFrom: "start", TTFT: "no",
			Notes: []string{
				"whole seconds, and no lengths unless it was written at DEBUG, with the prompts in it: prefer --otlp-traces-endpoint",
			},
		}
		for _, b := range s.Records {
			p.ends = p.ends || bytes.Contains(b, []byte("] Generated response "))
			p.cap.Tokens = p.cap.Tokens || bytes.Contains(b, []byte(" prompt_token_ids: ["))
		}
		p.cap.Duration = p.ends
		switch {
		case o.Zone == nil && o.Year == 0:
			return nil, &NeedError{"vLLM's times name neither zone nor year", "--tz ZONE and --year YEAR"}
		case o.Zone == nil:
			return nil, &NeedError{"vLLM's times name no zone", "--tz ZONE"}
		case o.Year == 0:
			return nil, &NeedError{"vLLM's times name no year", "--year YEAR"}
		}
		return p, nil
	},
}

type vllmLog struct {
	assembler
	cap     Capability
	ends    bool             // the log has lines at the end of requests
	lengths map[string]int32 // prompt tokens by request id
	running waitingRequests
	out     capture.Logged
}

func (p *vllmLog) Capability() Capability { return p.cap }

func (p *vllmLog) Parse(b []byte, e *Emitter) error {
	head, body, ok := bytes.Cut(b, []byte("] "))
	if !ok {
		e.Drop(reasonNotRequest, 1)
		return nil
	}
	switch {
	case bytes.HasPrefix(body, []byte("Received request ")):
		id, params, ok := bytes.Cut(body[len("Received request "):], []byte(": "))
		if !ok {
			return errShort
		}
		at, err := p.at(head)
		if err != nil {
			return err
		}
		return p.received(string(id), at, params, e)
	case bytes.HasPrefix(body, []byte("Request ")) && bytes.Contains(body, []byte(" details: ")):
		id, _, _ := bytes.Cut(body[len("Request "):], []byte(" "))
		if n := idsIn(body, "prompt_token_ids: ["); n > 0 {
			if len(p.lengths) >= maxWaiting {
				clear(p.lengths) // none of them was ever asked for
			}
			p.lengths[string(id)] = n
		}
		e.Drop(reasonJoined, 1)
	case p.ends && bytes.HasPrefix(body, []byte("Generated response ")):
		e.Drop(reasonJoined, 1)
		return p.generated(head, body[len("Generated response "):], e)
	default:
		e.Drop(reasonNotRequest, 1)
	}
	return nil
}

// at reads the stamp, which stands before the place in brackets.
func (p *vllmLog) at(head []byte) (int64, error) {
	if i := bytes.LastIndexByte(head, '['); i > 0 {
		head = bytes.TrimRight(head[:i], " ")
	}
	if len(head) < 14 {
		return 0, errBadTime
	}
	c, ok := parseMonthDay(head[len(head)-14:])
	if !ok {
		return 0, errBadTime
	}
	at, ok := p.clock.at(c)
	if !ok {
		return 0, errBadTime
	}
	return at, nil
}

func (p *vllmLog) received(id string, at int64, params []byte, e *Emitter) error {
	p.out = capture.Logged{Arrival: at}
	row := &p.out.Row
	var r record
	for _, f := range []struct {
		name string
		bind *binding
	}{
		{"max_tokens=", &binding{field: fieldMaxTokens}}, {"n=", &binding{field: fieldChoices}}, {"temperature=", &binding{field: fieldTemperature}},
	} {
		if v := paramIn(params, f.name); v != nil {
			r.put(f.bind, v, false)
		}
	}
	p.limits(&r, &p.out)
	if n, ok := p.lengths[id]; ok {
		delete(p.lengths, id)
		row.PromptTokens, row.PromptTokensSource = traceformat.Some(n), traceformat.SourceEngine
	}
	if !p.ends {
		e.Record(&p.out)
		return nil
	}
	row.Result = traceformat.ResultTruncated // until its end is read
	p.running.put(id, &p.out, e)
	return nil
}

// paramIn finds "name=value" in a repr of parameters.
func paramIn(b []byte, name string) []byte {
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte(name))
		if i < 0 {
			return nil
		}
		i += at
		if i > 0 && (b[i-1] == '(' || b[i-1] == ' ') {
			v := b[i+len(name):]
			if end := bytes.IndexAny(v, ",)"); end >= 0 {
				v = v[:end]
			}
			if string(v) == "None" {
				return nil
			}
			return v
		}
		at = i + len(name)
	}
}

// idsIn counts the numbers of a list that follows mark.
func idsIn(b []byte, mark string) int32 {
	i := bytes.LastIndex(b, []byte(mark))
	if i < 0 {
		return 0
	}
	b = b[i+len(mark):]
	end := bytes.IndexByte(b, ']')
	if end <= 0 {
		return 0
	}
	return int32(bytes.Count(b[:end], []byte(","))) + 1
}

// generated reads "<id>[ (streaming complete)]: output: '...', finish_reason: x".
func (p *vllmLog) generated(head, body []byte, e *Emitter) error {
	id, rest, ok := bytes.Cut(body, []byte(":"))
	if !ok {
		return errShort
	}
	id, kind, _ := bytes.Cut(id, []byte(" "))
	if bytes.Contains(kind, []byte("delta")) {
		return nil
	}
	l := p.running.take(string(id))
	if l == nil {
		return nil
	}
	if at, err := p.at(head); err == nil && at >= l.Arrival {
		l.Row.E2E = traceformat.Some(time.Duration(at - l.Arrival))
	}
	l.Row.Result = traceformat.ResultOK
	if i := bytes.LastIndex(rest, []byte("finish_reason: ")); i >= 0 {
		word, _, _ := bytes.Cut(rest[i+len("finish_reason: "):], []byte(","))
		l.Row.FinishReason = finishWord(bytes.TrimSpace(word))
		if l.Row.FinishReason == "abort" {
			l.Row.Result, l.Row.Abort, l.Row.E2E = traceformat.ResultClientAbort, l.Row.E2E, traceformat.Opt[time.Duration]{}
		}
		if l.Row.FinishReason == "none" {
			l.Row.FinishReason = ""
		}
	}
	if n := idsIn(rest, "output_token_ids: ["); n > 0 {
		l.Row.OutputTokens, l.Row.OutputTokensSource = traceformat.Some(n), traceformat.SourceEngine
	}
	e.Record(l)
	return nil
}

func (p *vllmLog) Flush(e *Emitter) { p.running.flush(e) }
