package convert

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

// What no result file of another load generator says.
const (
	lacksSchedule = "no schedule: time zero is when the tool began to send, so that a late client is not seen"
	lacksDigests  = "no prompts and no digests of them: that two runs sent the same is not checked"
	lacksFinish   = "no finish reason: an answer that came to its end counts as a success, whatever its length"
)

// newResultHeader is newHeader for what another load generator measured.
func newResultHeader(dialect string, lacks ...string) *traceformat.Header {
	h := newHeader(dialect)
	h.Origin.Vantage = "client"
	h.Clock.Source = "monotonic"
	h.Extra[traceformat.Lacks] = strings.Join(append([]string{lacksSchedule, lacksDigests, lacksFinish}, lacks...), "; ")
	return h
}

// maxValue bounds one value of a result file: the gaps of a request, or all that
// a tool says of one.
const maxValue = 16 << 20

var errTooLong = fmt.Errorf("a value is longer than %d MiB", maxValue>>20)

// document reads a file that is one JSON object, piece by piece. It holds one
// value at a time.
type document struct {
	*json.Decoder
	in   *boundedReader
	name string
	row  int64 // of which errors speak, -1 for the file
}

func newDocument(src io.Reader, name string) *document {
	in := &boundedReader{r: src}
	return &document{Decoder: json.NewDecoder(in), in: in, name: name, row: -1}
}

// boundedReader ends with an error where too much is read at a time.
type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// where locates an error.
func (d *document) where(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = traceformat.ErrTruncated
	}
	return &traceformat.RowError{Name: d.name, Row: d.row, Err: err}
}

func (d *document) token() (json.Token, error) {
	d.in.left = maxValue
	return d.Token()
}

// value reads the next value whole.
func (d *document) value() (json.RawMessage, error) {
	d.in.left = maxValue
	var v json.RawMessage
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return v, nil
}

// members visits the keys of the object that comes next. visit reads the value,
// or returns false for value to be skipped.
func (d *document) members(visit func(key string) (read bool, err error)) error {
	return d.inside('{', func() error {
		t, err := d.token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		if read, err := visit(key); read || err != nil {
			return err
		}
		return d.skip()
	})
}

// inside visits what an object or array holds. null is an empty one.
func (d *document) inside(open json.Delim, visit func() error) error {
	t, err := d.token()
	if err != nil || t == nil {
		return err
	}
	if t != open {
		return fmt.Errorf("%.40q where a %q has to be", fmt.Sprint(t), rune(open))
	}
	for d.more() {
		if err := visit(); err != nil {
			return err
		}
	}
	_, err = d.token()
	return err
}

func (d *document) more() bool {
	d.in.left = maxValue
	return d.More()
}

// skip passes over a value, however long, if its parts are not.
func (d *document) skip() error {
	for depth := 0; ; {
		t, err := d.token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// number is parseStamp for a JSON value that may be missing.
func number(raw []byte, scale int) (traceformat.Opt[time.Duration], error) {
	if len(raw) == 0 || string(raw) == "null" {
		return traceformat.Opt[time.Duration]{}, nil
	}
	v, err := parseStamp(raw, scale)
	if err != nil {
		return traceformat.Opt[time.Duration]{}, err
	}
	return some(v.ns), nil
}

// count is parseTokens for a JSON value that may be missing. Python writes some
// lengths as floats.
func count(raw []byte) (traceformat.Opt[int32], error) {
	if len(raw) == 0 || string(raw) == "null" {
		return traceformat.Opt[int32]{}, nil
	}
	v, _, err := parseTokens(raw)
	if err != nil {
		return traceformat.Opt[int32]{}, err
	}
	return traceformat.Some(v), nil
}

// gaps makes chunk times of the first one and the gaps after it. Where there are
// as many events as tokens, each carried one.
func gaps(row *traceformat.Row, list []byte, scale int) error {
	if !row.TTFT.OK {
		return nil
	}
	at := row.TTFT.V
	row.ChunkTimes = append(row.ChunkTimes[:0], at)
	for raw := range scanArray(list) {
		g, err := parseStamp(raw, scale)
		if err != nil {
			return fmt.Errorf("%.40s %w", raw, err)
		}
		if at > time.Duration(maxStamp-g.ns) {
			return errTooLarge
		}
		at += time.Duration(g.ns)
		row.ChunkTimes = append(row.ChunkTimes, at)
	}
	if n, ok := row.OutputTokens.Get(); ok && int(n) == len(row.ChunkTimes) {
		row.ChunkTokens = row.ChunkTokens[:0]
		for range row.ChunkTimes {
			row.ChunkTokens = append(row.ChunkTokens, 1)
		}
	}
	return nil
}

// statusOf finds the status in what HTTPX says of an answer.
var statusOf = regexp.MustCompile(`(?:Server|Client) error '([45][0-9]{2})[ ']`)

// failure makes an outcome of the text of a tool's error, which may hold
// addresses and parts of an answer and goes no further.
func failure(row *traceformat.Row, text string) {
	if m := statusOf.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[1])
		failedStatus(row, n)
		return
	}
	for n := 400; n < 600; n++ {
		if text != "" && text == http.StatusText(n) {
			failedStatus(row, n)
			return
		}
	}
	row.Result, row.Error = traceformat.ResultServerError, "other"
	lower := strings.ToLower(text)
	for _, c := range failures {
		if strings.Contains(lower, c.part) {
			row.Result, row.Error = c.result, c.class
			return
		}
	}
}

// failures are parts of what aiohttp and HTTPX say. The first that fits counts.
var failures = []struct{ part, result, class string }{
	{"timeout", traceformat.ResultTimeout, "timeout"},
	{"timed out", traceformat.ResultTimeout, "timeout"},
	{"payload is not completed", traceformat.ResultServerError, "truncated"},
	{"peer closed connection", traceformat.ResultServerError, "truncated"},
	{"incomplete", traceformat.ResultServerError, "truncated"},
	{"disconnected", traceformat.ResultServerError, "connection_reset"},
	{"connection reset", traceformat.ResultServerError, "connection_reset"},
	{"broken pipe", traceformat.ResultServerError, "connection_reset"},
	{"cannot connect", traceformat.ResultServerError, "connect_refused"},
	{"refused", traceformat.ResultServerError, "connect_refused"},
	{"all connection attempts failed", traceformat.ResultServerError, "connect_refused"},
	{"never received a valid chunk", traceformat.ResultServerError, "no_token"},
	{"jsondecodeerror", traceformat.ResultServerError, "malformed_answer"},
}

// failedStatus is the outcome of an answer with an HTTP status that is no
// success.
func failedStatus(row *traceformat.Row, status int) {
	row.Status = traceformat.Some(int16(status))
	row.Error = "http_" + strconv.Itoa(status)
	switch {
	case status == http.StatusRequestTimeout || status == http.StatusGatewayTimeout:
		row.Result = traceformat.ResultTimeout
	case status < 500:
		row.Result = traceformat.ResultRejected
	default:
		row.Result = traceformat.ResultServerError
	}
}

// lastPart is a name without the folders before it: a model may be named by
// where it lies on somebody's disk.
func lastPart(name string) string {
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "~") {
		name = strings.TrimRight(name, "/")
		return name[strings.LastIndexByte(name, '/')+1:]
	}
	return name
}

// shiftSource moves the clocks of rows, which count from the origin of the
// source's, to the first arrival.
type shiftSource struct {
	*sortedSource
	first time.Duration
	begun bool
}

func (s *shiftSource) read(row *traceformat.Row) error {
	if err := s.sortedSource.read(row); err != nil {
		return err
	}
	if !s.begun {
		s.begun, s.first = true, row.Arrival
	}
	for _, t := range []*traceformat.Opt[time.Duration]{&row.FirstEvent, &row.Close} {
		if t.OK {
			t.V -= s.first
		}
	}
	return nil
}

// idSet finds ids that come twice. Ids that lie close together take a bit each.
type idSet struct {
	pages map[int64]*[64]uint64
}

// maxPages bounds an idSet to 32 MiB: 268 million ids where they are dense.
const maxPages = 1 << 16

var (
	errTwice  = errors.New("comes twice: is the file made of several runs?")
	errSparse = errors.New("is far from all others: is this what the tool wrote?")
)

func (s *idSet) add(id int64) error {
	page := s.pages[id>>12]
	if page == nil {
		if len(s.pages) == maxPages {
			return errSparse
		}
		if s.pages == nil {
			s.pages = map[int64]*[64]uint64{}
		}
		page = new([64]uint64)
		s.pages[id>>12] = page
	}
	word, bit := &page[id>>6&63], uint64(1)<<(id&63)
	if *word&bit != 0 {
		return errTwice
	}
	*word |= bit
	return nil
}

// isResult tells result files apart by the keys of the first object.
func isResult(keys map[string]string) string {
	switch {
	case has(keys, "model_id", "tokenizer_id", "num_prompts"):
		return vllmBenchName
	case has(keys, "metadata") && has(keysOf([]byte(keys["metadata"])), "request_start_ns", "benchmark_phase"),
		has(keys, "aiperf_version"):
		return aiperfName
	case has(keys, "metadata", "benchmarks") && has(keysOf([]byte(keys["metadata"])), "guidellm_version"):
		return guidellmName
	}
	return ""
}

// isGuideLLMYAML reports whether head starts like GuideLLM's results in YAML,
// whose keys are sorted.
func isGuideLLMYAML(head []byte) bool {
	return bytes.HasPrefix(head, []byte("benchmarks:\n- ")) && bytes.Contains(head, []byte("guidellm"))
}

// spool holds the values of a list in a temporary file without a name.
type spool struct {
	f   *os.File
	w   *bufio.Writer
	r   *bufio.Reader
	n   int64
	buf []byte
}

func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, "reprise-*.list")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 32<<10)}, nil
}

func (c *spool) add(b []byte) error {
	c.n++
	c.buf = binary.AppendUvarint(c.buf[:0], uint64(len(b)))
	if _, err := c.w.Write(c.buf); err != nil {
		return err
	}
	_, err := c.w.Write(b)
	return err
}

func (c *spool) rewind() error {
	if err := c.w.Flush(); err != nil {
		return err
	}
	_, err := c.f.Seek(0, io.SeekStart)
	c.r = bufio.NewReaderSize(c.f, 32<<10)
	return err
}

// next returns the next element, which stands until the call after.
func (c *spool) next() ([]byte, error) {
	n, err := binary.ReadUvarint(c.r)
	if err != nil {
		return nil, err
	}
	c.buf = slices.Grow(c.buf[:0], int(n))[:n]
	_, err = io.ReadFull(c.r, c.buf)
	return c.buf, err
}

func (c *spool) close() { c.f.Close() }
