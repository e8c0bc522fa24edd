package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

const vllmBenchName = "vllm-bench"

// Results of "vllm bench serve --save-result --save-detailed": one JSON object
// with a list a column, in seconds. See vllm/benchmarks/serve.py and
// vllm/benchmarks/lib/endpoint_request_func.py.
var vllmBenchFormat = traceformat.Format{
	Name:   vllmBenchName,
	Detect: func(head []byte) bool { return jsonFormat(head) == vllmBenchName },
	Open:   openVLLMBench,
}

var errNoDetail = errors.New("the file holds totals and no requests: run vllm bench serve again with --save-result --save-detailed")

func openVLLMBench(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	dir := ""
	if o != nil {
		dir = o.TempDir
	}
	v := &vllmBench{document: newDocument(src, name), dir: dir, columns: map[string]*spool{}}
	defer v.close()
	if err := v.load(); err != nil {
		return nil, v.where(err)
	}
	h := newResultHeader(vllmBenchName,
		"the lengths are the server's where it sent usage and otherwise the tool's tokenizer's, and the file does not say which")
	if v.tokenizer != "" {
		h.Tokenizer = lastPart(v.tokenizer)
	}
	if v.chat() {
		h.Extra[traceformat.Lacks] += "; TTFT ends with the first event that has choices, which in a chat is a role and no token"
	}
	sorted, err := sortSource(v, o)
	if err != nil {
		return nil, err
	}
	if v.next == 0 {
		return nil, errors.Join(&traceformat.RowError{Name: name, Row: -1, Err: traceformat.ErrEmpty}, sorted.Close())
	}
	return newReader(sorted, readerConfig{header: h, params: p})
}

type vllmBench struct {
	*document
	dir              string
	columns          map[string]*spool
	model, tokenizer string
	endpoint         string // endpoint_type, or backend before there was one
	next             int64
	last             time.Duration // start of the row before
	extra            extra
}

// Lists that become columns. Others, generated_texts above all, are passed over.
var vllmColumns = []string{"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "errors"}

// load reads the object and lays its lists out on disk, side by side.
func (v *vllmBench) load() error {
	err := v.members(func(key string) (bool, error) {
		if slices.Contains(vllmColumns, key) {
			return true, v.list(key)
		}
		var to *string
		switch key {
		case "model_id":
			to = &v.model
		case "tokenizer_id":
			to = &v.tokenizer
		case "endpoint_type":
			to = &v.endpoint
		case "backend":
			if v.endpoint == "" {
				to = &v.endpoint
			}
		case "generated_texts":
			v.extra.drop(key)
		}
		if to == nil {
			return false, nil
		}
		raw, err := v.value()
		if err != nil {
			return true, err
		}
		if s, _, err := parseText(raw); err == nil {
			*to = s
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if v.more() {
		return errors.New("the file holds more than one run (--append-result): put each into a file of its own")
	}
	if v.columns["ttfts"] == nil || v.columns["start_times"] == nil || v.columns["itls"] == nil || v.columns["output_lens"] == nil {
		return errNoDetail
	}
	n := v.columns["start_times"].n
	for _, key := range vllmColumns {
		c := v.columns[key]
		if c == nil {
			continue
		}
		if c.n != n {
			return fmt.Errorf("%s has %d items and start_times %d", key, c.n, n)
		}
		if err := c.rewind(); err != nil {
			return err
		}
	}
	return nil
}

// list copies a list. Of an error only its class is kept.
func (v *vllmBench) list(key string) error {
	if v.columns[key] != nil {
		return fmt.Errorf("key %q comes twice", key)
	}
	c, err := newSpool(v.dir)
	if err != nil {
		return err
	}
	v.columns[key] = c
	return v.inside('[', func() error {
		raw, err := v.value()
		if err != nil {
			return err
		}
		if key == "errors" {
			if raw, err = errorClass(raw); err != nil {
				return fmt.Errorf("errors: %w", err)
			}
		}
		return c.add(raw)
	})
}

// errorClass makes [outcome, class, status] of an error's text; of none, an
// empty array.
func errorClass(raw []byte) ([]byte, error) {
	var text *string
	if err := json.Unmarshal(raw, &text); err != nil {
		return nil, errors.New("holds something other than text")
	}
	if text == nil || *text == "" {
		return []byte("[]"), nil
	}
	var row traceformat.Row
	failure(&row, *text)
	return json.Marshal([]string{row.Result, row.Error, strconv.Itoa(int(row.Status.V))})
}

func (v *vllmBench) read(row *traceformat.Row) error {
	v.row = v.next
	items := map[string][]byte{}
	for _, key := range vllmColumns {
		c := v.columns[key]
		if c == nil {
			continue
		}
		raw, err := c.next()
		if err == io.EOF {
			return io.EOF
		}
		if err != nil {
			return v.where(err)
		}
		items[key] = raw
	}
	if err := v.request(row, items); err != nil {
		return v.where(err)
	}
	v.next++
	return nil
}

func (v *vllmBench) chat() bool { return strings.Contains(v.endpoint, "chat") }

func (v *vllmBench) request(row *traceformat.Row, items map[string][]byte) error {
	row.ID = v.next
	row.Model = lastPart(v.model)
	row.Stream = traceformat.Some(true)
	row.Endpoint = traceformat.EndpointCompletions
	row.TTFTSource = traceformat.TTFTContentEvent
	if v.chat() {
		// Nearer to it than content_event: it may be a role.
		row.Endpoint, row.TTFTSource = traceformat.EndpointChat, traceformat.TTFTFirstByte
	}
	if err := v.result(row, items["errors"]); err != nil {
		return err
	}
	ok := row.Result == traceformat.ResultOK
	times := map[string]traceformat.Opt[time.Duration]{}
	for _, key := range []string{"start_times", "ttfts", "latencies", "queue_times"} {
		t, err := number(items[key], seconds)
		if err != nil {
			return fmt.Errorf("%s: %.40s %w", key, items[key], err)
		}
		times[key] = t
	}
	// A request that failed before it was sent has no start; it is counted
	// where the one before it started.
	row.Arrival = times["start_times"].V
	if row.Arrival == 0 && !ok {
		row.Arrival = v.last
	}
	v.last = row.Arrival
	var err error
	if row.PromptTokens, err = count(items["input_lens"]); err != nil {
		return fmt.Errorf("input_lens: %.40s %w", items["input_lens"], err)
	}
	if ok {
		if row.OutputTokens, err = count(items["output_lens"]); err != nil {
			return fmt.Errorf("output_lens: %.40s %w", items["output_lens"], err)
		}
	}
	if ttft := times["ttfts"]; ttft.V > 0 || ok {
		row.TTFT = ttft
	} else {
		row.TTFTSource = ""
	}
	if err := gaps(row, items["itls"], seconds); err != nil {
		return fmt.Errorf("itls: %w", err)
	}
	if ok {
		// Older versions do not list latencies; they are this sum.
		row.E2E = times["latencies"]
		if n := len(row.ChunkTimes); !row.E2E.OK && n > 0 {
			row.E2E = traceformat.Some(row.ChunkTimes[n-1])
		}
	}
	v.extra.reset()
	if q := times["queue_times"]; q.OK {
		v.extra.keep("queue_times", items["queue_times"])
	}
	row.Extra = v.extra.result()
	return nil
}

func (v *vllmBench) result(row *traceformat.Row, raw []byte) error {
	row.Result = traceformat.ResultOK
	if raw == nil {
		return nil
	}
	var class []string
	if err := json.Unmarshal(raw, &class); err != nil {
		return err
	}
	if len(class) == 0 {
		return nil
	}
	row.Result, row.Error = class[0], class[1]
	if n, _ := strconv.ParseInt(class[2], 10, 16); n > 0 {
		row.Status = traceformat.Some(int16(n))
	}
	return nil
}

func (v *vllmBench) finish(h *traceformat.Header) { finishText(h, nil, v.extra.dropped) }

func (v *vllmBench) close() {
	for _, c := range v.columns {
		c.close()
	}
}
