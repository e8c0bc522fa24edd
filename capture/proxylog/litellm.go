package proxylog

import (
	"slices"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// LiteLLM writes a row for each call of a provider, as StandardLoggingPayload
// (callbacks, s3, gcs, ...) or as a row of the table LiteLLM_SpendLogs. Calls
// that served one request share its trace id: an attempt that failed and the
// one that followed it are one request, which came when the first began.
//
// completionStartTime is endTime where it was never stamped, and then no TTFT.
// Sources: litellm/types/utils.py, litellm_core_utils/litellm_logging.py,
// schema.prisma; "Prefix Block Hash IDs" in its documentation.
var litellmDialect = &Dialect{
	Name: "litellm", Title: "LiteLLM, logging payload or spend logs", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.keys("startTime", "endTime", "call_type") {
			return 96
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		utc := *o
		if utc.Zone == nil {
			utc.Zone = time.UTC // as the database keeps it
		}
		keys := []key{
			{"startTime", binding{field: fieldStart}},
			{"endTime", binding{field: fieldEnd}},
			{"completionStartTime", binding{field: fieldFirst}},
			{"call_type", binding{field: fieldKind}},
			{"stream", binding{field: fieldStream}},
			{"model_parameters.stream", binding{field: fieldStream}},
			{"model_parameters.max_tokens", binding{field: fieldMaxTokens}},
			{"model_parameters.max_completion_tokens", binding{field: fieldMaxTokens}},
			{"model_parameters.temperature", binding{field: fieldTemperature}},
			{"model_parameters.n", binding{field: fieldChoices}},
			{"status", binding{field: fieldResult}},
			{"metadata.status", binding{field: fieldResult}},
			{"error_information.error_code", binding{field: fieldStatus}},
			{"metadata.error_information.error_code", binding{field: fieldStatus}},
			{"error_information.error_class", binding{field: fieldError}},
			{"metadata.error_information.error_class", binding{field: fieldError}},
			{"prompt_tokens", binding{field: fieldPrompt}},
			{"completion_tokens", binding{field: fieldOutput}},
			{"metadata.usage_object.prompt_tokens_details.cached_tokens", binding{field: fieldCached}},
			{"metadata.usage_object.cache_read_input_tokens", binding{field: fieldCached}},
			{"metadata.usage_object.completion_tokens_details.reasoning_tokens", binding{field: fieldReasoning}},
			{"model", binding{field: fieldModel}},
			{"model_group", binding{field: fieldModelAsked}},
			{"session_id", binding{field: fieldSession}},
			{"trace_id", binding{field: fieldTrace}},
			{"litellm_trace_id", binding{field: fieldTrace}},
			{"api_key", binding{field: fieldClient}}, // a hash in both; keyed again
			{"metadata.user_api_key_hash", binding{field: fieldClient}},
			{"team_id", binding{field: fieldClient}},
			{"requester_ip_address", binding{field: fieldClient}},
			{"end_user", binding{field: fieldUser}},
			{"user", binding{field: fieldUser}},
			{"cache_hit", binding{field: fieldCacheHit}},
		}
		// Where the ids lie is said nowhere: at one of these places, bare or in an
		// object beside the size of a block.
		for _, in := range []string{"", "metadata.", "metadata.spend_logs_metadata.", "metadata.requester_metadata.", "hidden_params."} {
			keys = append(keys,
				key{in + "prefix_block_hashes", binding{field: fieldPrefix}},
				key{in + "prefix_block_hashes.hashes", binding{field: fieldPrefix}},
				key{in + "prefix_block_hashes.block_hashes", binding{field: fieldPrefix}},
				key{in + "prefix_block_hashes.ids", binding{field: fieldPrefix}},
				key{in + "prefix_block_hashes.block_size", binding{field: fieldBlockSize}},
				key{in + "prefix_block_size", binding{field: fieldBlockSize}},
			)
		}
		p := &litellm{waiting: map[string]*attempt{}}
		t, err := newTabled(s, newAssembler(&utc, traceformat.SourceUsage, traceformat.TTFTGateway), keys, func(t *tabled) {
			t.skip = func(r *record) string {
				e, reason := litellmCall(r.bytes(fieldKind))
				p.endpoint = e
				return reason
			}
		})
		if t == nil {
			return nil, err
		}
		t.cap.Status = true
		t.cap.Notes = append(t.cap.Notes,
			"aborts are told only where the gateway logged a failure for them",
			"for /v1/messages of older versions the arrival is that of the answer's head (BerriAI/litellm#17335)")
		p.blockParser = blockParser{t, blocksOf(s, t)}
		return p, err
	},
}

// litellmCall is the endpoint of a call_type, or why it is no request.
func litellmCall(kind []byte) (endpoint, reason string) {
	switch string(kind) {
	case "completion", "acompletion", "":
		return traceformat.EndpointChat, ""
	case "text_completion", "atext_completion":
		return traceformat.EndpointCompletions, ""
	case "embedding", "aembedding":
		return traceformat.EndpointEmbeddings, ""
	case "anthropic_messages", "aanthropic_messages":
		return traceformat.EndpointMessages, ""
	case "responses", "aresponses":
		return traceformat.EndpointResponses, ""
	case "pass_through_endpoint", "allm_passthrough_route", "llm_passthrough_route":
		return "", ""
	case "/health", "health_check", "ahealth_check":
		return "", capture.ReasonHealthCheck
	}
	return "", capture.ReasonNotLLM // images, speech, rerank, moderation, files, ...
}

type litellm struct {
	blockParser
	endpoint string
	waiting  map[string]*attempt // failed attempts by trace id
	order    []string            // of waiting, oldest first
}

// An attempt is a call that failed and may be followed by another.
type attempt struct {
	first capture.Logged
	start int64 // of the request
	last  int64 // end of the latest attempt
	n     int
}

const (
	// maxWaiting bounds the failed attempts that wait.
	maxWaiting = 1 << 16
	// attemptGap is how long after an attempt failed the next may begin: what a
	// gateway waits between attempts is some seconds.
	attemptGap = int64(2 * time.Minute)
)

func (p *litellm) Parse(rec []byte, e *Emitter) error {
	r := &p.rec
	r.reset()
	if err := p.fields(rec, r); err != nil {
		return err
	}
	if reason := p.skip(r); reason != "" {
		e.Drop(reason, 1)
		return nil
	}
	l := &p.out
	*l = capture.Logged{}
	p.unstamped(r)
	reason, err := p.request(r, l)
	switch {
	case err != nil:
		return err
	case reason != "":
		e.Drop(reason, 1)
		return nil
	}
	if l.Row.Endpoint == "" {
		l.Row.Endpoint = p.endpoint
	}
	if l.Row.Result == "" {
		l.Row.Result = traceformat.ResultOK // older spend logs name failures alone
	}
	trace := r.text(fieldTrace)
	if trace == "" {
		e.Record(l)
		return nil
	}
	p.join(trace, l, e)
	return nil
}

// unstamped forgets a first token that was not stamped: it has the time of the
// end.
func (p *litellm) unstamped(r *record) {
	first, _, ok := r.stamp(fieldFirst, &p.clock)
	end, _, ended := r.stamp(fieldEnd, &p.clock)
	if ok && ended && first >= end {
		r.set &^= 1 << fieldFirst
	}
}

// join puts the attempts at one request together.
func (p *litellm) join(trace string, l *capture.Logged, e *Emitter) {
	end := l.Arrival + int64(l.Row.E2E.V) + int64(l.Row.Abort.V)
	failed := l.Row.Result == traceformat.ResultServerError || l.Row.Result == traceformat.ResultTimeout || l.Row.Result == traceformat.ResultRejected
	w := p.waiting[trace]
	if w != nil && (l.Arrival < w.start || l.Arrival > w.last+attemptGap) {
		// Another request of the same trace.
		delete(p.waiting, trace)
		p.release(w, e)
		w = nil
	}
	if w != nil {
		// The request came with its first attempt; its times run from there.
		shift := time.Duration(l.Arrival - w.start)
		l.Arrival = w.start
		for _, d := range []*traceformat.Opt[time.Duration]{&l.Row.TTFT, &l.Row.E2E, &l.Row.Abort} {
			if d.OK {
				d.V += shift
			}
		}
		w.n++
		l.Attempts = w.n
		e.Drop(capture.ReasonRetry, 1)
		if !failed {
			delete(p.waiting, trace)
			e.Record(l)
			return
		}
		w.first, w.last = *l, end
		return
	}
	if !failed {
		e.Record(l)
		return
	}
	p.waiting[trace] = &attempt{first: *l, start: l.Arrival, last: end, n: 1}
	p.order = append(p.order, trace)
	for len(p.waiting) > maxWaiting && len(p.order) > 0 {
		p.releaseOldest(e)
	}
	if len(p.order) > 2*maxWaiting {
		p.order = slices.DeleteFunc(p.order, func(t string) bool { return p.waiting[t] == nil })
	}
}

func (p *litellm) releaseOldest(e *Emitter) {
	trace := p.order[0]
	p.order = p.order[1:]
	if w := p.waiting[trace]; w != nil {
		delete(p.waiting, trace)
		p.release(w, e)
	}
}

// release records a request whose attempts all failed.
func (p *litellm) release(w *attempt, e *Emitter) { e.Record(&w.first) }

func (p *litellm) Flush(e *Emitter) {
	for len(p.order) > 0 {
		p.releaseOldest(e)
	}
}
