package convert

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"reprise/traceformat"
)

const (
	dynamoName   = "dynamo"
	dynamoSchema = "dynamo.request.trace.v1"
	// notRequests is the reason under which the events of a Dynamo trace that
	// are not ended requests are counted: payloads, and those of tools.
	notRequests = "not_a_request"
)

// Dynamo request traces: JSON Lines, an event each, bare or inside the envelope
// {"timestamp":...,"event":...} that its file sinks put around them.
var dynamoFormat = traceformat.Format{
	Name:   dynamoName,
	Detect: func(head []byte) bool { return jsonFormat(head) == dynamoName },
	Open:   openDynamo,
}

func openDynamo(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	h := newHeader(dynamoName)
	h.Origin.Vantage = "proxy"
	h.Lengths = traceformat.LengthsCumulative
	d := &dynamo{jsonRow: jsonRow{lines: newLines(src, name)}}
	// Events are written when a request ends, not when it arrives.
	sorted, err := sortSource(d, o)
	if err != nil {
		return nil, err
	}
	if d.rows+d.skipped == 0 {
		return nil, errors.Join(&traceformat.RowError{Name: name, Row: -1, Err: traceformat.ErrEmpty}, sorted.Close())
	}
	return newReader(sorted, readerConfig{header: h, unit: time.Millisecond, dated: true, params: p})
}

type dynamo struct {
	jsonRow
	size    int32 // of blocks
	skipped int64 // events that are not requests
	extra   extra
	request []member
	replay  []member
}

func (d *dynamo) read(row *traceformat.Row) error {
	for {
		if err := d.next(); err != nil {
			return err
		}
		if event := d.get("event"); event != nil {
			var err error
			if d.members, err = membersOf(nil, event); err != nil {
				return d.errorf("event: %w", err)
			}
		}
		if s, _, err := parseText(d.get("schema")); err != nil || s != dynamoSchema {
			return d.errorf("schema is %.60q, want %s: %w", s, dynamoSchema, traceformat.ErrFormat)
		}
		kind, _, _ := parseText(d.get("event_type"))
		switch kind {
		case "request_end":
			if err := d.ended(row); err != nil {
				return d.wrap(err)
			}
			d.rows++
			return nil
		case "request_payload", "tool_start", "tool_end", "tool_error":
			d.skipped++
		default:
			return d.errorf("event_type is %.60q, want request_end, request_payload or tool_*", kind)
		}
	}
}

// Fields of "request" that have columns, and of those around it that are read.
var (
	dynamoFields = []string{
		"request_id", "model", "input_tokens", "output_tokens", "cached_tokens", "request_received_ms",
		"prefill_wait_time_ms", "prefill_time_ms", "ttft_ms", "total_time_ms", "replay", "finish_reason_metadata",
	}
	dynamoReplayFields = []string{"trace_block_size", "input_length", "input_sequence_hashes"}
)

func (d *dynamo) ended(row *traceformat.Row) error {
	raw := d.get("request")
	if raw == nil {
		return errors.New("request_end without a request")
	}
	var err error
	if d.request, err = membersOf(d.request[:0], raw); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	d.extra.reset()
	row.ID = d.rows
	if err := d.times(row); err != nil {
		return err
	}
	for _, f := range []struct {
		key string
		to  *traceformat.Opt[int32]
	}{{"input_tokens", &row.PromptTokens}, {"output_tokens", &row.OutputTokens}, {"cached_tokens", &row.CachedTokens}} {
		if raw := get(d.request, f.key); raw != nil {
			v, _, err := parseTokens(raw)
			if err != nil {
				return fmt.Errorf("%s %.40s %w", f.key, raw, err)
			}
			*f.to = traceformat.Some(v)
		}
	}
	if err := d.prefix(row); err != nil {
		return err
	}
	for _, f := range []struct {
		known bool
		to    *string
	}{{row.PromptTokens.OK, &row.PromptTokensSource}, {row.OutputTokens.OK, &row.OutputTokensSource}} {
		if f.known {
			*f.to = traceformat.SourceEngine
		}
	}
	if raw := get(d.request, "request_id"); raw != nil {
		d.extra.field("request_id", raw)
	}
	if raw := get(d.request, "model"); raw != nil {
		if row.Model, _, err = parseText(raw); err != nil {
			return fmt.Errorf("model %w", err)
		}
	}
	if err := d.context(row); err != nil {
		return err
	}
	if err := d.finished(row); err != nil {
		return err
	}
	for _, f := range d.request {
		if !slices.Contains(dynamoFields, f.key) {
			d.extra.field(f.key, f.value)
		}
	}
	row.Extra = d.extra.result()
	return nil
}

// times reads when the request came and how long its parts took.
func (d *dynamo) times(row *traceformat.Row) error {
	for _, f := range []struct {
		key string
		to  *traceformat.Opt[time.Duration]
	}{
		{"ttft_ms", &row.TTFT}, {"total_time_ms", &row.E2E},
		{"prefill_wait_time_ms", &row.ServerQueue}, {"prefill_time_ms", &row.ServerPrefill},
	} {
		raw := get(d.request, f.key)
		if raw == nil {
			continue
		}
		v, err := parseStamp(raw, milliseconds)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.key, raw, err)
		}
		*f.to = some(v.ns)
		if !v.exact {
			d.extra.keep(f.key, raw)
		}
	}
	if row.TTFT.OK {
		row.TTFTSource = traceformat.TTFTGateway
	}
	if raw := get(d.request, "request_received_ms"); raw != nil {
		at, err := parseStamp(raw, milliseconds)
		if err != nil {
			return fmt.Errorf("request_received_ms %.40s %w", raw, err)
		}
		row.Arrival = time.Duration(at.ns)
		return nil
	}
	// The record is written when the request ends.
	end, err := parseStamp(d.get("event_time_unix_ms"), milliseconds)
	if err != nil || !row.E2E.OK || end.ns < int64(row.E2E.V) {
		return errors.New("neither request_received_ms nor event_time_unix_ms with total_time_ms: when was it sent?")
	}
	row.Arrival = time.Duration(end.ns) - row.E2E.V
	return nil
}

// prefix reads what Dynamo records for replays.
func (d *dynamo) prefix(row *traceformat.Row) error {
	raw := get(d.request, "replay")
	if raw == nil {
		return nil
	}
	var err error
	if d.replay, err = membersOf(d.replay[:0], raw); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	size, exact, err := parseTokens(get(d.replay, "trace_block_size"))
	if err != nil || !exact || size < 1 {
		return fmt.Errorf("trace_block_size %.40s is not a number of tokens", get(d.replay, "trace_block_size"))
	}
	if d.size != 0 && size != d.size {
		return fmt.Errorf("trace_block_size is %d after %d: a trace has one block size", size, d.size)
	}
	d.size = size
	in, _, err := parseTokens(get(d.replay, "input_length"))
	if err != nil {
		return fmt.Errorf("input_length %.40s %w", get(d.replay, "input_length"), err)
	}
	if n, ok := row.PromptTokens.Get(); ok && n != in {
		// Both are kept: the lengths of blocks go with the one for replays.
		d.extra.keep("input_tokens", get(d.request, "input_tokens"))
	}
	row.PromptTokens = traceformat.Some(in)
	if row.PrefixBlocks, err = parseIDs(nil, get(d.replay, "input_sequence_hashes")); err != nil {
		return fmt.Errorf("input_sequence_hashes %w", err)
	}
	if want := blocksKept(in, size); len(row.PrefixBlocks) != want {
		return fmt.Errorf("%d input_sequence_hashes for %d tokens, want %d blocks of %d with the last one kept", len(row.PrefixBlocks), in, want, size)
	}
	for _, f := range d.replay {
		if !slices.Contains(dynamoReplayFields, f.key) {
			d.extra.field("replay."+f.key, f.value)
		}
	}
	return nil
}

// context reads the identity that agents give to their requests.
func (d *dynamo) context(row *traceformat.Row) error {
	raw := d.get("agent_context")
	if raw == nil {
		return nil
	}
	members, err := membersOf(nil, raw)
	if err != nil {
		return fmt.Errorf("agent_context: %w", err)
	}
	if raw := get(members, "session_id"); raw != nil {
		id, _, err := parseText(raw)
		if err != nil {
			return fmt.Errorf("session_id %w", err)
		}
		key, hashed := sessionID(id)
		if hashed {
			d.extra.field("agent_context.session_id", raw)
		}
		row.Session = traceformat.Some(key)
	}
	for _, f := range members {
		if f.key != "session_id" {
			d.extra.field("agent_context."+f.key, f.value)
		}
	}
	return nil
}

// finished reads how the request ended.
func (d *dynamo) finished(row *traceformat.Row) error {
	raw := get(d.request, "finish_reason_metadata")
	if raw == nil {
		return nil
	}
	members, err := membersOf(nil, raw)
	if err != nil {
		return fmt.Errorf("finish_reason_metadata: %w", err)
	}
	if raw := get(members, "finish_reason"); raw != nil {
		if row.FinishReason, _, err = parseText(raw); err != nil {
			return fmt.Errorf("finish_reason %w", err)
		}
	}
	switch row.FinishReason {
	case "":
	case "error":
		row.Result, row.Error = traceformat.ResultServerError, "finish_reason_error"
	case "cancelled", "canceled":
		row.Result = traceformat.ResultClientAbort
	default:
		row.Result = traceformat.ResultOK
	}
	for _, f := range members {
		if f.key != "finish_reason" {
			d.extra.field("finish_reason_metadata."+f.key, f.value)
		}
	}
	return nil
}

func (d *dynamo) finish(h *traceformat.Header) {
	if d.size > 0 {
		h.Blocks = traceformat.Blocks{
			Size: d.size, Scheme: "xxh3-chain", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialKept,
		}
	}
	if d.skipped > 0 {
		h.Rows.Dropped = map[string]int64{notRequests: d.skipped}
	}
	finishText(h, nil, d.extra.dropped)
}
