package convert

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

const (
	guidellmName = "guidellm"
	// notListed is the reason under which requests are counted that GuideLLM says
	// it sent and does not list.
	notListed = "not_listed"
)

// Results of GuideLLM in JSON (benchmarks.json): one object with a list of
// benchmarks, each with lists of requests that ended well, badly and not at all.
// See guidellm/schemas/base/request_stats.py and info.py.
var guidellmFormat = traceformat.Format{
	Name:   guidellmName,
	Detect: func(head []byte) bool { return jsonFormat(head) == guidellmName || isGuideLLMYAML(head) },
	Open:   openGuideLLM,
}

var (
	errGuideLLMYAML = errors.New("the file is GuideLLM's YAML, which cannot be read piece by piece: " +
		"let GuideLLM write JSON (--output kind=json,path=benchmarks.json)")
	errNoRequests = errors.New("the benchmark holds no requests: give the JSON that GuideLLM wrote of the run, which lists them under requests")
)

func openGuideLLM(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	g := &guidellm{name: name, want: -1}
	if o != nil && o.Params["benchmark"] != "" {
		if g.want, err = strconv.ParseInt(o.Params["benchmark"], 10, 32); err != nil || g.want < 0 {
			return nil, fmt.Errorf("parameter benchmark is %q, want its place in the file, from 0", o.Params["benchmark"])
		}
	}
	in := bufio.NewReaderSize(src, 64<<10)
	head, err := in.Peek(64 << 10)
	if err != nil && err != io.EOF {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: err}
	}
	if isGuideLLMYAML(head) {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: errGuideLLMYAML}
	}
	dir := ""
	if o != nil {
		dir = o.TempDir
	}
	if g.list, err = newSpool(dir); err != nil {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: err}
	}
	defer g.list.close()
	d := newDocument(in, name)
	if err := g.load(d); err != nil {
		return nil, d.where(err)
	}
	// The lists are in the order in which requests ended. Those that were queued
	// in the order of the dataset get their ids in that order, and then go into
	// the order in which they were sent.
	queued, err := sortSource(g, o)
	if err != nil {
		return nil, err
	}
	sorted, err := sortSource(&numbered{sortedSource: queued}, o)
	if err = errors.Join(err, queued.Close()); err != nil {
		if sorted != nil {
			err = errors.Join(err, sorted.Close())
		}
		return nil, err
	}
	h := newResultHeader(guidellmName, "no times of single events, only of the first and last token: no ITL")
	return newReader(&shiftSource{sortedSource: sorted}, readerConfig{header: h, dated: true, params: p})
}

// guidellm reads one benchmark.
type guidellm struct {
	name     string
	want     int64  // benchmark to read, -1 for the only one
	list     *spool // its requests
	made     int64  // how many it sent, as it says
	model    string
	endpoint string
	rows     int64
	extra    extra
}

// load finds the benchmark and lays its requests out on disk.
func (g *guidellm) load(d *document) error {
	benchmarks := int64(0)
	err := d.members(func(key string) (bool, error) {
		switch key {
		case "config":
			return true, g.config(d)
		case "benchmarks":
			return true, d.inside('[', func() error {
				benchmarks++
				switch {
				case g.want < 0 && benchmarks > 1:
					return errors.New("the file holds several benchmarks: say which with the parameter benchmark=0 (or 1, ...)")
				case g.want >= 0 && g.want != benchmarks-1:
					return d.skip()
				}
				return g.benchmark(d)
			})
		}
		return false, nil
	})
	switch {
	case err != nil:
		return err
	case g.want >= benchmarks:
		return fmt.Errorf("there is no benchmark %d: the file holds %d", g.want, benchmarks)
	case g.list.n == 0:
		return errNoRequests
	}
	return g.list.rewind()
}

// config reads what is said of the backend before the benchmarks.
func (g *guidellm) config(d *document) error {
	raw, err := d.value()
	if err != nil {
		return err
	}
	var c struct {
		Spec struct {
			Backend struct {
				Model  *string `json:"model"`
				Format *string `json:"request_format"`
			} `json:"backend"`
		} `json:"spec"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return nil // another version's; nothing of it is needed
	}
	if m := c.Spec.Backend.Model; m != nil {
		g.model = lastPart(*m)
	}
	if f := c.Spec.Backend.Format; f != nil {
		switch {
		case strings.HasSuffix(*f, "/chat/completions"):
			g.endpoint = traceformat.EndpointChat
		case strings.HasSuffix(*f, "/completions"):
			g.endpoint = traceformat.EndpointCompletions
		case strings.HasSuffix(*f, "/responses"):
			g.endpoint = traceformat.EndpointResponses
		}
	}
	return nil
}

func (g *guidellm) benchmark(d *document) error {
	return d.members(func(key string) (bool, error) {
		switch key {
		case "scheduler_metrics":
			return true, g.totals(d)
		case "requests":
			return true, d.members(func(key string) (bool, error) {
				// "total" would hold them all once more.
				if key != "successful" && key != "errored" && key != "incomplete" {
					return false, nil
				}
				return true, d.inside('[', func() error {
					d.row = g.list.n
					raw, err := d.value()
					if err != nil {
						return err
					}
					if err := g.list.add([]byte(key)); err != nil {
						return err
					}
					g.list.n-- // the two are one request
					d.row = -1
					return g.list.add(raw)
				})
			})
		}
		return false, nil
	})
}

func (g *guidellm) totals(d *document) error {
	raw, err := d.value()
	if err != nil {
		return err
	}
	var m struct {
		Made struct {
			Total *int64 `json:"total"`
		} `json:"requests_made"`
	}
	if json.Unmarshal(raw, &m) == nil && m.Made.Total != nil {
		g.made = *m.Made.Total
	}
	return nil
}

// guidellmRequest is what is read of a request: seconds since 1970, as written.
type guidellmRequest struct {
	Args *string `json:"request_args"`
	Info struct {
		Turn    *int32  `json:"turn_index"`
		Error   *string `json:"error"`
		Timings *struct {
			Queued       json.RawMessage `json:"queued"`
			ResolveStart json.RawMessage `json:"resolve_start"`
			Start        json.RawMessage `json:"request_start"`
			FirstEvent   json.RawMessage `json:"first_request_iteration"`
			First        json.RawMessage `json:"first_token_iteration"`
			Last         json.RawMessage `json:"last_token_iteration"`
			End          json.RawMessage `json:"request_end"`
			ResolveEnd   json.RawMessage `json:"resolve_end"`
			Events       json.RawMessage `json:"token_iterations"`
			Targeted     json.RawMessage `json:"targeted_start"`
		} `json:"timings"`
	} `json:"info"`
	Prompt json.RawMessage `json:"prompt_tokens"`
	Output json.RawMessage `json:"output_tokens"`
	Cached json.RawMessage `json:"cached_tokens"`
	Server *struct {
		Queue      json.RawMessage `json:"queue_time_ms"`
		Prefill    json.RawMessage `json:"time_to_first_token_ms"`
		Generation json.RawMessage `json:"generation_time_ms"`
	} `json:"response_metrics"`
}

// where locates an error at the request that was read last.
func (g *guidellm) where(err error) error {
	return &traceformat.RowError{Name: g.name, Row: g.rows, Err: err}
}

// read fills row with Arrival the time at which the request was queued and Sent
// the one at which it was sent, which numbered puts into their places.
func (g *guidellm) read(row *traceformat.Row) error {
	raw, err := g.list.next()
	if err == io.EOF {
		return io.EOF
	}
	list := string(raw)
	if err == nil {
		raw, err = g.list.next()
	}
	if err != nil {
		return g.where(err)
	}
	var r guidellmRequest
	if err := json.Unmarshal(raw, &r); err != nil {
		return g.where(fmt.Errorf("request: %w", err))
	}
	if r.Info.Timings == nil {
		return g.where(errors.New("the request has no info.timings: GuideLLM 0.8 writes them"))
	}
	if err := g.request(row, &r, list); err != nil {
		return g.where(err)
	}
	g.rows++
	return nil
}

func (g *guidellm) request(row *traceformat.Row, r *guidellmRequest, list string) error {
	t := r.Info.Timings
	var queued, resolve, start, event, first, last, end, resolved traceformat.Opt[time.Duration]
	for _, f := range []struct {
		name string
		raw  json.RawMessage
		to   *traceformat.Opt[time.Duration]
	}{
		{"queued", t.Queued, &queued}, {"resolve_start", t.ResolveStart, &resolve}, {"request_start", t.Start, &start},
		{"first_request_iteration", t.FirstEvent, &event}, {"first_token_iteration", t.First, &first},
		{"last_token_iteration", t.Last, &last}, {"request_end", t.End, &end}, {"resolve_end", t.ResolveEnd, &resolved},
	} {
		v, err := number(f.raw, seconds)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.name, f.raw, err)
		}
		*f.to = v
	}
	if !start.OK {
		start = resolve
	}
	if !start.OK {
		start = queued // it was never sent
	}
	if !start.OK {
		return errors.New("the request has none of request_start, resolve_start and queued: when was it sent?")
	}
	row.ID = g.rows
	row.Arrival, row.Sent = queued.Or(start.V), start
	row.Model, row.Endpoint = g.model, g.endpoint
	if n := r.Info.Turn; n != nil && *n > 0 {
		row.Turn = traceformat.Some(*n)
	}
	if err := g.lengths(row, r); err != nil {
		return err
	}
	g.limits(row, r.Args)
	after := func(at traceformat.Opt[time.Duration]) traceformat.Opt[time.Duration] {
		if !at.OK || at.V < start.V {
			return traceformat.Opt[time.Duration]{}
		}
		return some(int64(at.V - start.V))
	}
	if row.TTFT = after(first); row.TTFT.OK {
		row.TTFTSource = traceformat.TTFTContentEvent
	}
	row.FirstEvent = event
	if err := g.server(row, r); err != nil {
		return err
	}
	switch list {
	case "successful":
		row.Result = traceformat.ResultOK
		row.E2E, row.Close = after(last), end
		if !row.E2E.OK { // it did not stream
			row.E2E = after(end)
		}
	case "errored":
		text := ""
		if r.Info.Error != nil {
			text = *r.Info.Error
		}
		failure(row, text)
		row.Close = resolved
	default:
		row.Result, row.Error = traceformat.ResultClientAbort, "benchmark_ended"
		row.Abort = after(resolved)
	}
	g.extra.reset()
	if len(t.Targeted) > 0 {
		g.extra.field("targeted_start", t.Targeted)
	}
	if row.TTFT.OK && len(t.Events) > 0 {
		g.extra.field("token_iterations", t.Events)
	}
	row.Extra = g.extra.result()
	return nil
}

func (g *guidellm) lengths(row *traceformat.Row, r *guidellmRequest) error {
	for _, f := range []struct {
		name string
		raw  json.RawMessage
		to   *traceformat.Opt[int32]
	}{{"prompt_tokens", r.Prompt, &row.PromptTokens}, {"output_tokens", r.Output, &row.OutputTokens}, {"cached_tokens", r.Cached, &row.CachedTokens}} {
		n, err := count(f.raw)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.name, f.raw, err)
		}
		*f.to = n
	}
	return nil
}

// limits reads what shaped the work from the body that was sent, of which
// nothing else is kept.
func (g *guidellm) limits(row *traceformat.Row, args *string) {
	g.extra.drop("request_args")
	g.extra.drop("output")
	if args == nil {
		return
	}
	var a struct {
		Stream *bool `json:"stream"`
		Body   struct {
			MaxTokens           json.RawMessage `json:"max_tokens"`
			MaxCompletionTokens json.RawMessage `json:"max_completion_tokens"`
		} `json:"body"`
	}
	if json.Unmarshal([]byte(*args), &a) != nil {
		return
	}
	if a.Stream != nil {
		row.Stream = traceformat.Some(*a.Stream)
	}
	for _, raw := range []json.RawMessage{a.Body.MaxTokens, a.Body.MaxCompletionTokens} {
		if n, err := count(raw); err == nil && n.OK {
			row.MaxTokens = n
		}
	}
}

// server reads the clocks that vLLM reports; see llmapi.Chunk for what they
// count from.
func (g *guidellm) server(row *traceformat.Row, r *guidellmRequest) error {
	if r.Server == nil {
		return nil
	}
	var generation traceformat.Opt[time.Duration]
	for _, f := range []struct {
		name string
		raw  json.RawMessage
		to   *traceformat.Opt[time.Duration]
	}{
		{"queue_time_ms", r.Server.Queue, &row.ServerQueue}, {"time_to_first_token_ms", r.Server.Prefill, &row.ServerPrefill},
		{"generation_time_ms", r.Server.Generation, &generation},
	} {
		v, err := number(f.raw, milliseconds)
		if err != nil {
			return fmt.Errorf("response_metrics.%s %.40s %w", f.name, f.raw, err)
		}
		if v.V > time.Duration(maxStamp/4) {
			return fmt.Errorf("response_metrics.%s %w", f.name, errTooLarge)
		}
		*f.to = v
	}
	if row.ServerQueue.OK && row.ServerPrefill.OK {
		row.ServerTTFT = traceformat.Some(row.ServerQueue.V + row.ServerPrefill.V)
		if generation.OK {
			row.ServerE2E = traceformat.Some(row.ServerTTFT.V + generation.V)
		}
	}
	return nil
}

func (g *guidellm) finish(h *traceformat.Header) {
	if left := g.made - g.rows; left > 0 {
		h.Rows.Dropped = map[string]int64{notListed: left}
	}
	finishText(h, nil, g.extra.dropped)
}

// numbered gives rows ids in the order in which they come, and the arrival that
// a request has.
type numbered struct {
	*sortedSource
	n int64
}

func (s *numbered) read(row *traceformat.Row) error {
	if err := s.sortedSource.read(row); err != nil {
		return err
	}
	row.ID = s.n
	s.n++
	row.Arrival, row.Sent = row.Sent.V, traceformat.Opt[time.Duration]{}
	return nil
}
