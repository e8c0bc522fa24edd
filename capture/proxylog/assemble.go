package proxylog

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"reprise/capture"
	"reprise/internal/jsonscan"
	"reprise/traceformat"
)

// Why a record cannot be read.
var (
	errNoTime     = errors.New("has no time")
	errBadTime    = errors.New("has a time that cannot be read")
	errNoDuration = errors.New("has the time of its end and no duration")
	errShort      = errors.New("has too few fields")
)

// An assembler makes requests of records, by the same rules for all dialects.
type assembler struct {
	o     *Options
	clock calendar

	tokens string // source of lengths: usage or engine
	ttft   string // source of a TTFT
	cache  pathCache
	names  interner
}

func newAssembler(o *Options, tokens, ttft string) assembler {
	return assembler{o: o, clock: calendar{loc: o.Zone, year: o.Year}, tokens: tokens, ttft: ttft}
}

func (a *assembler) calendarOf() *calendar { return &a.clock }

// A pathCache remembers what became of the path before: logs hold few.
type pathCache struct {
	method, path     []byte
	endpoint, reason string
	known            bool
}

func (c *pathCache) classify(o *Options, method, path []byte) (endpoint, reason string) {
	if c.known && bytes.Equal(path, c.path) && bytes.Equal(method, c.method) {
		return c.endpoint, c.reason
	}
	c.method, c.path = append(c.method[:0], method...), append(c.path[:0], path...)
	c.endpoint, c.reason = o.classify(method, path)
	c.known = true
	return c.endpoint, c.reason
}

// An interner keeps one copy of words that come often.
type interner struct {
	words map[string]string
}

const maxInterned = 4096

func (n *interner) get(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := n.words[string(b)]; ok {
		return s
	}
	s := string(b)
	if n.words == nil {
		n.words = map[string]string{}
	}
	if len(n.words) >= maxInterned {
		clear(n.words)
	}
	n.words[s] = s
	return s
}

// request fills l, which is zero, from a record. reason says why there is no
// request, where that is no fault of the record.
func (a *assembler) request(r *record, l *capture.Logged) (reason string, err error) {
	if reason := a.route(r, l); reason != "" {
		return reason, nil
	}
	total, err := a.times(r, l)
	if err != nil {
		return "", err
	}
	a.ending(r, l, total)
	a.firstToken(r, l, total)
	a.lengths(r, l)
	a.limits(r, l)
	a.identity(r, l)
	return "", nil
}

// emit makes a request of a record and passes it on.
func (a *assembler) emit(r *record, l *capture.Logged, e *Emitter) error {
	*l = capture.Logged{}
	reason, err := a.request(r, l)
	switch {
	case err != nil:
		return err
	case reason != "":
		e.Drop(reason, 1)
	default:
		e.Record(l)
	}
	return nil
}

// route reads what was asked for.
func (a *assembler) route(r *record, l *capture.Logged) (reason string) {
	var method, path []byte
	switch {
	case r.has(fieldRequestLine):
		line := r.bytes(fieldRequestLine)
		i := bytes.IndexByte(line, ' ')
		if i < 0 {
			return capture.ReasonNotLLM // bytes that were no HTTP
		}
		method, path = line[:i], line[i+1:]
		if j := bytes.LastIndexByte(path, ' '); j >= 0 {
			path = path[:j]
		}
	case r.has(fieldPath):
		method, path = r.bytes(fieldMethod), r.bytes(fieldPath)
	default:
		return ""
	}
	l.Row.Endpoint, reason = a.cache.classify(a.o, method, path)
	return reason
}

// times reads arrival and duration.
func (a *assembler) times(r *record, l *capture.Logged) (total traceformat.Opt[time.Duration], err error) {
	total = r.span(fieldDuration)
	start, _, hasStart := r.stamp(fieldStart, &a.clock)
	end, _, hasEnd := int64(0), time.Duration(0), false
	if !hasStart || !total.OK {
		end, _, hasEnd = r.stamp(fieldEnd, &a.clock)
	}
	switch {
	case hasStart:
		l.Arrival = start
		if !total.OK && hasEnd && end >= start {
			total = traceformat.Some(time.Duration(end - start))
		}
	case r.has(fieldStart):
		return total, errBadTime
	case hasEnd && total.OK:
		l.Arrival = end - int64(total.V)
	case hasEnd && a.o.ArrivalsAreEnd:
		l.Arrival = end
	case hasEnd:
		return total, errNoDuration
	case r.has(fieldEnd):
		return total, errBadTime
	default:
		return total, errNoTime
	}
	if l.Arrival <= 0 {
		return total, errBadTime
	}
	return total, nil
}

// ending reads how the request ended.
func (a *assembler) ending(r *record, l *capture.Logged, total traceformat.Opt[time.Duration]) {
	row := &l.Row
	if s, ok := fixed(r.vals[fieldStatus].raw, 0); r.has(fieldStatus) && ok && s >= 100 && s <= 599 {
		row.Status = traceformat.Some(int16(s))
		row.Result, row.Error = statusResult(int(s))
	}
	if r.has(fieldTermination) {
		haproxyEnding(r.vals[fieldTermination].raw, row)
	}
	if r.has(fieldFlags) {
		envoyEnding(r.vals[fieldFlags].raw, row)
	}
	if r.has(fieldComplete) && len(r.vals[fieldComplete].raw) == 0 && row.Result == traceformat.ResultOK {
		// nginx says 200 for an answer that it began and could not finish.
		row.Result, row.Error = traceformat.ResultClientAbort, "incomplete_answer"
	}
	if r.has(fieldResult) {
		switch string(r.bytes(fieldResult)) {
		case "success", "ok", "OK", "SUCCESS", "DEFAULT":
			if row.Result == "" {
				row.Result = traceformat.ResultOK
			}
		case "failure", "error", "ERROR", "failed", "STATUS_CODE_ERROR", "2":
			if row.Result == "" || row.Result == traceformat.ResultOK {
				row.Result, row.Error = traceformat.ResultServerError, "failed"
			}
		}
	}
	if r.has(fieldFinish) {
		row.FinishReason = finishWord(r.bytes(fieldFinish))
		switch row.FinishReason {
		case "abort", "cancelled", "canceled", "aborted":
			row.Result, row.Error = traceformat.ResultClientAbort, ""
		case "error":
			row.Result, row.Error = traceformat.ResultServerError, "finish_reason_error"
		case "":
		default:
			if row.Result == "" {
				row.Result = traceformat.ResultOK
			}
		}
	}
	if r.has(fieldError) && row.Result != traceformat.ResultOK {
		if class := errorClass(r.bytes(fieldError)); class != "" {
			row.Error = class
			if !row.Status.OK && (row.Result == "" || row.Result == traceformat.ResultServerError) {
				row.Result = errorResult(class)
			}
		}
	}
	if row.Result == traceformat.ResultClientAbort {
		// What was sent until then says nothing of when the answer would have
		// been complete.
		row.Abort = total
		return
	}
	row.E2E = total
}

// statusResult is what an HTTP status says of a request.
func statusResult(status int) (result, class string) {
	switch {
	case status < 400:
		return traceformat.ResultOK, ""
	case status == 499: // nginx, Traefik: the client closed the request
		return traceformat.ResultClientAbort, ""
	case status == 408 || status == 504:
		return traceformat.ResultTimeout, "http_" + strconv.Itoa(status)
	case status < 500:
		return traceformat.ResultRejected, "http_" + strconv.Itoa(status)
	}
	return traceformat.ResultServerError, "http_" + strconv.Itoa(status)
}

// finishWord keeps a reason to stop if it is a word.
func finishWord(b []byte) string {
	if len(b) >= 4 && b[0] == '[' { // ["stop"]
		p := jsonscan.New(b)
		if p.Enter('[') && p.Elem() && p.Peek() == '"' {
			b = p.Text()
		}
	}
	if len(b) == 0 || len(b) > 32 {
		return ""
	}
	for _, c := range b {
		if (c < 'a' || c > 'z') && c != '_' && (c < 'A' || c > 'Z') {
			return ""
		}
	}
	return string(bytes.ToLower(b))
}

// errorClass keeps the class of an error if it looks like one: a word of
// letters, such as RateLimitError, or an HTTP status. Messages quote prompts.
func errorClass(b []byte) string {
	if len(b) == 3 && b[0] >= '4' && b[0] <= '5' {
		if _, ok := atoi(b); ok {
			return "http_" + string(b)
		}
	}
	if i := bytes.LastIndexByte(b, '.'); i >= 0 {
		b = b[i+1:] // litellm.RateLimitError
	}
	if len(b) == 0 || len(b) > 48 {
		return ""
	}
	for _, c := range b {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' {
			return ""
		}
	}
	return string(b)
}

// errorResult is the outcome that goes with a class of error.
func errorResult(class string) string {
	low := string(bytes.ToLower([]byte(class)))
	switch {
	case contains(low, "timeout"), low == "http_504", low == "http_408":
		return traceformat.ResultTimeout
	case contains(low, "cancel"), contains(low, "disconnect"), low == "http_499":
		return traceformat.ResultClientAbort
	case contains(low, "ratelimit"), contains(low, "rate_limit"), contains(low, "badrequest"), contains(low, "authentication"),
		contains(low, "permission"), contains(low, "budget"), contains(low, "contextwindow"), contains(low, "contentpolicy"),
		contains(low, "notfound"), contains(low, "invalid"), len(low) == 8 && low[:6] == "http_4":
		return traceformat.ResultRejected
	}
	return traceformat.ResultServerError
}

func contains(s, part string) bool { return bytes.Contains([]byte(s), []byte(part)) }

// firstToken reads the TTFT. A figure that lies outside of the request is none.
func (a *assembler) firstToken(r *record, l *capture.Logged, total traceformat.Opt[time.Duration]) {
	row := &l.Row
	ttft, source := r.span(fieldTTFT), a.ttft
	if first, _, ok := r.stamp(fieldFirst, &a.clock); ok && !ttft.OK {
		ttft = traceformat.Some(time.Duration(first - l.Arrival))
	}
	if !ttft.OK && a.o.TrustHeaderTime {
		ttft, source = r.lastSpan(fieldHeaderTime, fieldUpstreamTime), traceformat.TTFTHeader
	}
	const rounding = time.Millisecond
	switch {
	case !ttft.OK || ttft.V < 0 || total.OK && ttft.V > total.V+rounding:
		return
	case row.Status.OK && row.Status.V >= 400:
		return // an error has no token
	}
	if total.OK {
		ttft.V = min(ttft.V, total.V)
	}
	row.TTFT, row.TTFTSource = ttft, source
}

// lengths reads token counts. A prompt of no tokens is one that was not counted,
// and so is an answer of none to a request that failed.
func (a *assembler) lengths(r *record, l *capture.Logged) {
	row := &l.Row
	if n := r.count(fieldPrompt); n.OK && n.V > 0 {
		row.PromptTokens, row.PromptTokensSource = n, a.tokens
	}
	if n := r.count(fieldOutput); n.OK && (n.V > 0 || row.PromptTokens.OK && row.Result == traceformat.ResultOK) {
		row.OutputTokens, row.OutputTokensSource = n, a.tokens
	}
	if n := r.count(fieldCached); n.OK && row.PromptTokens.OK && n.V <= row.PromptTokens.V {
		row.CachedTokens = n
	}
	if n := r.count(fieldReasoning); n.OK && row.OutputTokens.OK && n.V <= row.OutputTokens.V {
		row.ReasoningTokens = n
	}
	if r.has(fieldPrefix) {
		l.PrefixHashes = hashes(r.vals[fieldPrefix])
	}
}

// maxHashes bounds the blocks of a prompt.
const maxHashes = 1 << 20

// hashes reads a JSON array of strings or numbers.
func hashes(v value) []string {
	p := jsonscan.New(v.raw)
	if !p.Enter('[') {
		return nil
	}
	out := []string{}
	for p.Elem() {
		h := bytes.Trim(p.Value(), `"`)
		if p.Bad() || len(h) == 0 || len(h) > 128 || len(out) == maxHashes {
			return nil
		}
		out = append(out, string(h))
	}
	if p.Bad() {
		return nil
	}
	return out
}

// limits reads what shaped the work.
func (a *assembler) limits(r *record, l *capture.Logged) {
	row := &l.Row
	if n := r.count(fieldMaxTokens); n.OK && n.V > 0 {
		row.MaxTokens = n
	}
	if n := r.count(fieldChoices); n.OK && n.V > 0 {
		row.N = n
	}
	if t := r.number(fieldTemperature); t.OK && t.V >= 0 {
		row.Temperature = t
	}
	row.Stream = r.truth(fieldStream)
	row.ServerQueue = r.span(fieldQueue)
	row.ServerPrefill = r.span(fieldPrefill)
}

// identity reads who asked and for which model.
func (a *assembler) identity(r *record, l *capture.Logged) {
	model := r.bytes(fieldModel)
	if len(model) == 0 || !isModel(model) {
		model = r.bytes(fieldModelAsked)
	}
	if isModel(model) {
		l.Row.Model = a.names.get(model)
	}
	l.Client = a.names.get(r.bytes(fieldClient))
	l.Session = r.text(fieldSession)
	l.User = a.names.get(r.bytes(fieldUser))
	if n := r.count(fieldAttempts); n.OK {
		l.Attempts = int(n.V)
	}
	if n := r.count(fieldRetries); n.OK {
		l.Attempts = int(n.V) + 1
	}
	if r.has(fieldUpstream) && l.Attempts == 0 {
		if raw := r.vals[fieldUpstream].raw; bytes.IndexByte(raw, ',') >= 0 || bytes.Contains(raw, []byte(" : ")) {
			l.Attempts = listLen(raw)
		}
	}
	if t := r.truth(fieldCacheHit); t.OK && t.V {
		l.Row.Extra = servedByCache
	}
}

// isModel reports whether b is a name of a model: short and without white space.
func isModel(b []byte) bool {
	if len(b) == 0 || len(b) > 200 {
		return false
	}
	for _, c := range b {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
