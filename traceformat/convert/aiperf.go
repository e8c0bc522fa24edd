package convert

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

const (
	aiperfName = "aiperf"
	// warmupRows is the reason under which requests are counted that a tool sent
	// before it measured.
	warmupRows = "warmup"
)

// Records of AIPerf (profile_export.jsonl): JSON Lines, a request each, written
// as they end. See aiperf/common/models/record_models.py, MetricRecordInfo.
var aiperfFormat = traceformat.Format{
	Name:   aiperfName,
	Detect: func(head []byte) bool { return jsonFormat(head) == aiperfName },
	Open:   openAIPerf,
}

var (
	errAIPerfSummary = errors.New("the file is AIPerf's summary and holds no requests: " +
		"give profile_export.jsonl, which --export-level records writes beside it")
	errAIPerfRaw = errors.New("the file holds raw answers and no figures: give profile_export.jsonl, which lies beside it")
)

func openAIPerf(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(src, 64<<10)
	head, err := in.Peek(64 << 10)
	if err != nil && err != io.EOF {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: err}
	}
	if has(keysOf(head), "aiperf_version") {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: errAIPerfSummary}
	}
	a := &aiperf{jsonRow: jsonRow{lines: newLines(in, name)}}
	sorted, err := sortSource(a, o)
	if err != nil {
		return nil, err
	}
	if a.rows+a.warmup == 0 {
		return nil, errors.Join(&traceformat.RowError{Name: name, Row: -1, Err: traceformat.ErrEmpty}, sorted.Close())
	}
	h := newResultHeader(aiperfName)
	if a.local {
		h.Extra[traceformat.Lacks] += "; some lengths are those of the tool's own tokenizer and not of the server (--use-server-token-count)"
	}
	return newReader(&shiftSource{sortedSource: sorted}, readerConfig{header: h, dated: true, params: p})
}

type aiperf struct {
	jsonRow
	warmup  int64 // rows left out
	local   bool  // a length was not the server's
	ids     idSet
	meta    []member
	metrics []member
	extra   extra
}

func (a *aiperf) read(row *traceformat.Row) error {
	for {
		if err := a.next(); err != nil {
			return err
		}
		var err error
		if a.meta, err = membersOf(a.meta[:0], a.get("metadata")); err != nil {
			return a.errorf("metadata: %w", err)
		}
		if phase, _, _ := parseText(get(a.meta, "benchmark_phase")); phase == "warmup" {
			a.warmup++
			continue
		}
		if a.get("metrics") == nil {
			return a.wrap(errAIPerfRaw)
		}
		if a.metrics, err = membersOf(a.metrics[:0], a.get("metrics")); err != nil {
			return a.errorf("metrics: %w", err)
		}
		if err := a.request(row); err != nil {
			return a.wrap(err)
		}
		a.rows++
		return nil
	}
}

func (a *aiperf) request(row *traceformat.Row) error {
	a.extra.reset()
	if err := a.identity(row); err != nil {
		return err
	}
	start, err := number(get(a.meta, "request_start_ns"), 0)
	if err != nil || !start.OK {
		return fmt.Errorf("request_start_ns %.40s is not a time", get(a.meta, "request_start_ns"))
	}
	row.Arrival = start.V
	end, err := number(get(a.meta, "request_end_ns"), 0)
	if err != nil {
		return fmt.Errorf("request_end_ns %.40s %w", get(a.meta, "request_end_ns"), err)
	}
	if raw := get(a.meta, "credit_issued_ns"); raw != nil {
		a.extra.field("credit_issued_ns", raw)
	}
	if err := a.lengths(row); err != nil {
		return err
	}
	if err := a.times(row); err != nil {
		return err
	}
	a.outcome(row)
	if row.Result != traceformat.ResultOK {
		row.E2E = traceformat.Opt[time.Duration]{}
	}
	switch {
	case !end.OK || end.V < start.V:
	case row.Result == traceformat.ResultClientAbort:
		row.Abort = some(int64(end.V - start.V))
	default:
		row.Close = end
	}
	row.Extra = a.extra.result()
	return nil
}

// Parts of a row's id. AIPerf counts the conversations of a phase; where each has
// one turn, and there is one phase, the id is that count: the place in the
// dataset, which another run of it shares.
const (
	turnShift  = 32
	phaseShift = 48
)

func (a *aiperf) identity(row *traceformat.Row) error {
	var parts [3]int64
	for i, f := range []struct {
		key string
		max int64
	}{{"session_num", 1<<turnShift - 1}, {"turn_index", 1<<(phaseShift-turnShift) - 1}, {"profiling_index", 1<<12 - 1}} {
		raw := get(a.meta, f.key)
		if raw == nil && i > 0 {
			continue
		}
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || n < 0 || n > f.max {
			return fmt.Errorf("%s %.40s is not a number up to %d", f.key, raw, f.max)
		}
		parts[i] = n
	}
	session, turn, phase := parts[0], parts[1], parts[2]<<phaseShift
	row.ID = phase | turn<<turnShift | session
	if err := a.ids.add(row.ID); err != nil {
		return fmt.Errorf("session_num %d with turn_index %d %w", session, turn, err)
	}
	row.Session, row.Turn = traceformat.Some(phase|session), traceformat.Some(int32(turn))
	if turn > 0 {
		row.Parent = traceformat.Some(row.ID - 1<<turnShift)
	}
	return nil
}

// metric returns the value and the unit of a metric, or nil.
func (a *aiperf) metric(name string) (value []byte, unit string) {
	m := get(a.metrics, name)
	for key, v := range scanObject(m) {
		switch string(key) {
		case `"value"`:
			value = v
		case `"unit"`:
			unit = unquote(v)
		}
	}
	return value, unit
}

// lengths reads what AIPerf took for the lengths, and says whose they are.
func (a *aiperf) lengths(row *traceformat.Row) error {
	for _, f := range []struct {
		own, server string
		to          *traceformat.Opt[int32]
		source      *string
	}{
		{"input_sequence_length", "usage_prompt_tokens", &row.PromptTokens, &row.PromptTokensSource},
		{"output_sequence_length", "usage_completion_tokens", &row.OutputTokens, &row.OutputTokensSource},
	} {
		raw, _ := a.metric(f.own)
		n, err := count(raw)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.own, raw, err)
		}
		rawServer, _ := a.metric(f.server)
		server, err := count(rawServer)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.server, rawServer, err)
		}
		switch {
		case !n.OK:
		case n == server:
			*f.source = traceformat.SourceUsage
		default:
			*f.source, a.local = traceformat.SourceTokenizer, true
			if server.OK {
				a.extra.keep(f.server, rawServer)
			}
		}
		*f.to = n
	}
	for _, f := range []struct {
		name string
		to   *traceformat.Opt[int32]
	}{{"usage_prompt_cache_read_tokens", &row.CachedTokens}, {"reasoning_token_count", &row.ReasoningTokens}} {
		raw, _ := a.metric(f.name)
		n, err := count(raw)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.name, raw, err)
		}
		*f.to = n
	}
	return nil
}

// scales of units that AIPerf gives times in.
var scales = map[string]int{"ns": 0, "us": 3, "ms": milliseconds, "s": seconds, "sec": seconds}

func (a *aiperf) times(row *traceformat.Row) error {
	for _, f := range []struct {
		name string
		to   *traceformat.Opt[time.Duration]
	}{{"time_to_first_token", &row.TTFT}, {"request_latency", &row.E2E}} {
		raw, unit := a.metric(f.name)
		scale, known := scales[unit]
		if raw != nil && !known {
			return fmt.Errorf("%s is in %.20q, want a unit of time", f.name, unit)
		}
		t, err := number(raw, scale)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.name, raw, err)
		}
		*f.to = t
	}
	if !row.TTFT.OK {
		return nil
	}
	row.TTFTSource = traceformat.TTFTContentEvent
	raw, unit := a.metric("inter_chunk_latency")
	scale, known := scales[unit]
	if raw == nil {
		return nil
	}
	if !known {
		return fmt.Errorf("inter_chunk_latency is in %.20q, want a unit of time", unit)
	}
	if err := gaps(row, raw, scale); err != nil {
		return fmt.Errorf("inter_chunk_latency: %w", err)
	}
	return nil
}

// outcome says how the request ended. Messages are looked at and go no further.
func (a *aiperf) outcome(row *traceformat.Row) {
	fault := a.get("error")
	switch {
	case string(get(a.meta, "was_cancelled")) == "true":
		row.Result, row.Error = traceformat.ResultClientAbort, "cancelled"
		return
	case string(get(a.meta, "context_overflow_skip")) == "true":
		row.Result, row.Error = traceformat.ResultShed, "context_overflow"
		return
	case fault == nil:
		row.Result = traceformat.ResultOK
		return
	}
	fields := keysOf(fault)
	if code, err := strconv.Atoi(fields["code"]); err == nil && code >= 400 && code < 600 {
		failedStatus(row, code)
		return
	}
	failure(row, strings.Join([]string{fields["type"], fields["message"], fields["cause"]}, " "))
}

func (a *aiperf) finish(h *traceformat.Header) {
	if a.warmup > 0 {
		h.Rows.Dropped = map[string]int64{warmupRows: a.warmup}
	}
	finishText(h, nil, a.extra.dropped)
}
