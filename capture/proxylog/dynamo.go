package proxylog

import (
	"strings"

	"reprise/capture"
	"reprise/traceformat"
)

// NVIDIA Dynamo's request trace, version 1: an event a line, bare or inside the
// envelope {"timestamp":...,"event":...} of its file sink. Block ids are chained
// with a fixed seed, so that the recorder keys them anew. Source:
// lib/llm/src/request_trace/types.rs of ai-dynamo/dynamo.
var dynamoDialect = &Dialect{
	Name: "dynamo", Title: "NVIDIA Dynamo, request trace", Vantage: "proxy",
	Detect: func(s *Sample) int {
		for _, name := range []string{"schema", "event.schema"} {
			if v, ok := s.value(name); ok && strings.HasPrefix(v, `"dynamo.request.trace.v`) {
				return 99
			}
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		var keys []key
		for _, in := range []string{"", "event."} {
			keys = append(keys, []key{
				{in + "event_type", binding{field: fieldKind}},
				{in + "event_time_unix_ms", binding{field: fieldEnd, unit: unitMilli}},
				{in + "agent_context.session_id", binding{field: fieldSession}},
				{in + "request.request_received_ms", binding{field: fieldStart, unit: unitMilli}},
				{in + "request.total_time_ms", binding{field: fieldDuration, unit: unitMilli}},
				{in + "request.ttft_ms", binding{field: fieldTTFT, unit: unitMilli}},
				{in + "request.model", binding{field: fieldModel}},
				{in + "request.replay.input_length", binding{field: fieldPrompt}},
				{in + "request.input_tokens", binding{field: fieldPrompt}},
				{in + "request.output_tokens", binding{field: fieldOutput}},
				{in + "request.cached_tokens", binding{field: fieldCached}},
				{in + "request.prefill_wait_time_ms", binding{field: fieldQueue, unit: unitMilli}},
				{in + "request.prefill_time_ms", binding{field: fieldPrefill, unit: unitMilli}},
				{in + "request.replay.input_sequence_hashes", binding{field: fieldPrefix}},
				{in + "request.replay.trace_block_size", binding{field: fieldBlockSize}},
				{in + "request.finish_reason_metadata.finish_reason", binding{field: fieldFinish}},
			}...)
		}
		t, err := newTabled(s, newAssembler(o, traceformat.SourceEngine, traceformat.TTFTGateway), keys, func(t *tabled) {
			t.skip = func(r *record) string {
				if r.text(fieldKind) != "request_end" {
					return reasonNotRequest
				}
				return ""
			}
			t.fix = func(r *record, l *capture.Logged) {
				if l.Row.Result == "" {
					l.Row.Result = traceformat.ResultOK
				}
			}
		})
		if t == nil {
			return nil, err
		}
		t.cap.Aborts = true
		return blockParser{t, blocksOf(s, t)}, err
	},
}

// A blockParser knows from its sample what block ids mean.
type blockParser struct {
	*tabled
	blocks *traceformat.Blocks
}

func (b blockParser) Blocks() *traceformat.Blocks { return b.blocks }

// blocksOf looks for the size of blocks in a sample.
func blocksOf(s *Sample, t *tabled) *traceformat.Blocks {
	for _, rec := range s.Records {
		var r record
		if t.fields(rec, &r) != nil {
			continue
		}
		if n := r.count(fieldBlockSize); n.OK && n.V > 0 {
			return &traceformat.Blocks{
				Size: n.V, Scheme: blockScheme, Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialKept,
			}
		}
	}
	return nil
}

// blockScheme says how ids of blocks that a log has become those of a trace: by
// keyed hashes of what the source wrote.
const blockScheme = "hmac-sha256-of-source"
