package capture

import (
	"bytes"
	"iter"
	"strings"

	"reprise/internal/jsonscan"
	"reprise/traceformat"
)

var (
	sessionHeaders = []string{
		"x-session-id", "session-id", "session_id", "agent-session-id", "x-conversation-id", "conversation_id",
		"x-openwebui-chat-id", "helicone-session-id",
	}
	requestIDHeaders = []string{"idempotency-key", "x-request-id"}
	// keyHeaders hold credentials, each of one client. They are hashed where
	// they are read.
	keyHeaders = []string{"authorization", "x-api-key", "api-key", "x-goog-api-key"}
)

// SessionHeaders are the headers that can name a session, unless Options say
// otherwise.
func SessionHeaders() []string { return sessionHeaders }

// RequestIDHeaders are the headers by which attempts at one request are told,
// unless Options say otherwise.
func RequestIDHeaders() []string { return requestIDHeaders }

// requestState is what an Exchange knows of its request.
type requestState struct {
	route
	known    bool // the head was read
	encoding string
	client   string // pseudonym, or empty
	session  string // as the client named it: hashed at the end of the request
	id       string // likewise

	buf   []byte
	size  int64
	lost  string // why the body is not kept, or empty
	ended bool

	ask    asked
	prompt *prompt // nil: unknown
}

// An asked is what a body says of the work.
type asked struct {
	model       string
	user        string // pseudonym
	session     string // plain
	previous    string // id of the response that this one continues, plain
	stream      traceformat.Opt[bool]
	max, n      traceformat.Opt[int32]
	temperature traceformat.Opt[float64]
	read        bool // the body was read and understood
}

func (q *requestState) head(x *Exchange, method, target string, h Header) (reason string) {
	q.known = method != "" || target != ""
	q.route = routeOf(method, target)
	if q.route.reason != "" {
		return q.route.reason
	}
	q.encoding = h.get("content-encoding")
	for _, name := range keyHeaders {
		if v := h.get(name); v != "" {
			if kind, rest, ok := strings.Cut(v, " "); ok && strings.EqualFold(kind, "bearer") {
				v = rest
			}
			q.client = x.r.key.pseudonym(domainClient, "", v)
			break
		}
	}
	q.session = first(h, x.r.o.SessionHeaders)
	q.id = first(h, x.r.o.RequestIDHeaders)
	return ""
}

func first(h Header, names []string) string {
	for _, n := range names {
		if v := h.get(n); v != "" {
			return strings.Clone(v)
		}
	}
	return ""
}

func (q *requestState) body(x *Exchange, p []byte) {
	q.size += int64(len(p))
	if q.lost != "" || q.ended {
		return
	}
	switch {
	case q.size > x.r.o.MaxBody:
		q.drop(x, ReasonMemory)
	case !x.reserve(&q.buf, len(p)):
		q.drop(x, ReasonMemory)
	default:
		q.buf = append(q.buf, p...)
	}
}

// drop lets go of the body.
func (q *requestState) drop(x *Exchange, reason string) {
	q.lost = reason
	x.hold(-int64(cap(q.buf)))
	q.buf = nil
}

func (q *requestState) gap(x *Exchange, n int64) {
	q.size += n
	if q.lost == "" {
		q.drop(x, ReasonIncomplete)
	}
}

// release lets go of what holds memory or content.
func (q *requestState) release() {
	q.buf, q.session, q.id = nil, "", ""
	if q.prompt != nil && q.prompt.chain != nil {
		q.prompt.chain.release()
		q.prompt.chain = nil
	}
}

// reserve makes room for n more bytes in buf, within the budget.
func (x *Exchange) reserve(buf *[]byte, n int) bool {
	b := *buf
	if need := len(b) + n; need > cap(b) {
		size := max(need, 2*cap(b), 512)
		if !x.hold(int64(size - cap(b))) {
			return false
		}
		c := make([]byte, len(b), size)
		copy(c, b)
		*buf = c
	}
	return true
}

// endRequest reads the body, now that there is no more of it, and decides
// whether the exchange is to be recorded.
func (x *Exchange) endRequest(complete bool) {
	q := &x.ask
	q.ended = true
	var b requestBody
	body, ok := q.buf, q.lost == "" && len(q.buf) > 0
	if ok && q.encoding != "" && q.encoding != "identity" {
		body, ok = decodeAll(q.encoding, q.buf, x.r.o.MaxBody)
	}
	ok = ok && b.parse(body)
	if q.endpoint == "" {
		if ok {
			q.endpoint = b.shapeOf()
		}
		if q.endpoint == "" {
			x.discard(q.whyUnknown(ok, complete))
			return
		}
	}
	if ok && bytes.HasPrefix(b.rid, []byte("HEALTH_CHECK")) { // SGLang asks itself
		x.discard(ReasonHealthCheck)
		return
	}
	if ok {
		x.r.readBody(q, &b)
	}
	if q.client == "" && x.conn.Client != "" {
		q.client = x.r.key.pseudonym(domainClient, "", x.conn.Client)
	}
	x.conn.Client = ""
	x.admit()
	if !x.over {
		x.hold(-int64(cap(q.buf)))
		q.buf = nil
		if q.prompt != nil {
			q.prompt.window = nil // it holds the body
		}
	}
}

// whyUnknown names the reason why a request that the head does not explain is
// not recorded.
func (q *requestState) whyUnknown(read, complete bool) string {
	switch {
	case q.lost != "":
		return q.lost
	case !complete:
		return ReasonIncomplete
	case read || q.known:
		return ReasonNotLLM
	default:
		return ReasonParse
	}
}

// readBody takes from b what the row needs.
func (r *Recorder) readBody(q *requestState, b *requestBody) {
	a := &q.ask
	a.read = true
	a.model = nameOf(r.key, plain(b.model))
	a.stream, a.max, a.n, a.temperature = b.stream, b.max, b.n, b.temperature
	if !a.stream.OK {
		a.stream = traceformat.Some(false)
	}
	if q.stream {
		a.stream = traceformat.Some(true)
	}
	a.session, a.previous = plain(b.session), plain(b.previous)
	if user := plain(b.user); user != "" {
		// Claude Code names user, account and session in one word.
		if _, s, ok := strings.Cut(user, "_session_"); ok && a.session == "" {
			a.session = s
		}
		a.user = r.key.pseudonym(domainUser, "", user)
	}
	q.prompt = r.readPrompt(q.endpoint, b)
}

// maxName bounds what is taken for the name of a model.
const maxName = 128

// nameOf is a model as it is spelt, if it looks like a name; a column must not
// hold whatever a client writes.
func nameOf(k *Key, name string) string {
	ok := len(name) <= maxName
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-/:@+,=()[] ", c) >= 0
	}
	if !ok || strings.Count(name, " ") > 3 {
		return k.pseudonym(domainModel, "model-", name)
	}
	return name
}

// plain is the value of the inside of a JSON string.
func plain(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw)
	}
	return string(jsonscan.Unquote(raw))
}

// A requestBody is what the members of a body are, as views of its bytes.
type requestBody struct {
	model, user, session, previous, rid []byte // insides of strings

	// Whole values.
	tools, system, messages, prompt, input, inputs, text, ids []byte

	stream      traceformat.Opt[bool]
	max, n      traceformat.Opt[int32]
	temperature traceformat.Opt[float64]

	// What tells the dialects apart where the path is unknown.
	anthropic, responses, sampling bool
}

// parse reads data, a JSON object. It returns false for anything else.
func (b *requestBody) parse(data []byte) bool {
	p := jsonscan.New(data)
	if !p.Enter('{') {
		return false
	}
	var newer, user, safety []byte
	var limit traceformat.Opt[int32] // the spelling that goes before the others
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "model":
			b.model = p.Text()
		case "stream":
			b.stream = flag(&p)
		case "max_completion_tokens":
			limit = p.Count()
		case "max_tokens", "max_new_tokens", "n_predict":
			b.max = p.Count()
		case "max_output_tokens":
			b.max, b.responses = p.Count(), true
		case "n":
			b.n = p.Count()
		case "temperature":
			b.temperature = p.Float()
		case "sampling_params", "parameters":
			b.sampling = true
			b.params(&p)
		case "messages":
			b.messages = p.Value()
		case "prompt":
			b.prompt = p.Value()
		case "input":
			b.input = p.Value()
			b.responses = b.responses || bytes.Contains(b.input[:min(len(b.input), 4096)], []byte(`"role"`))
		case "inputs":
			b.inputs = p.Value()
		case "text":
			b.text = p.Value()
		case "input_ids", "token_ids", "prompt_token_ids":
			b.ids = p.Value()
		case "tools", "functions":
			b.tools = p.Value()
			b.anthropic = b.anthropic || bytes.Contains(b.tools, []byte(`"input_schema"`))
		case "system":
			b.system, b.anthropic = p.Value(), true
		case "instructions":
			b.system, b.responses = p.Value(), true
		case "anthropic_version", "stop_sequences":
			b.anthropic = true
			p.Skip()
		case "previous_response_id":
			b.previous, b.responses = p.Text(), true
		case "store", "reasoning", "include", "truncation":
			b.responses = true
			p.Skip()
		case "conversation":
			if p.Peek() == '{' {
				newer = member(&p, "id")
			} else {
				newer = p.Text()
			}
		case "session_id", "conversation_id", "chat_id":
			b.session = p.Text()
		case "session_params":
			newer = member(&p, "id")
		case "metadata":
			b.metadata(&p)
		case "user":
			user = p.Text()
		case "safety_identifier":
			safety = p.Text()
		case "rid":
			b.rid = p.Text()
		default:
			p.Skip()
		}
	}
	p.Peek()
	if p.Bad() || p.Rest() > 0 {
		return false
	}
	if limit.OK {
		b.max = limit
	}
	b.session = firstOf(b.session, newer)
	b.user = firstOf(user, b.user, safety)
	for _, v := range []*[]byte{&b.messages, &b.prompt, &b.input, &b.inputs, &b.text, &b.ids, &b.system, &b.tools} {
		if string(*v) == "null" {
			*v = nil
		}
	}
	if n := b.n; n.OK && n.V < 1 {
		b.n.OK = false
	}
	if t := b.temperature; t.OK && t.V < 0 {
		b.temperature.OK = false
	}
	const maxTokens = 1 << 30 // what a row can hold
	if b.max.OK && b.max.V > maxTokens {
		b.max.OK = false
	}
	return true
}

func firstOf(list ...[]byte) []byte {
	for _, v := range list {
		if len(v) > 0 {
			return v
		}
	}
	return nil
}

// params reads SGLang's and vLLM's sampling_params and TGI's parameters. Of
// several, one for each prompt, the first counts.
func (b *requestBody) params(p *jsonscan.Parser) {
	if p.Enter('[') {
		for i := 0; p.Elem(); i++ {
			if i == 0 {
				b.params(p)
			} else {
				p.Skip()
			}
		}
		return
	}
	for k := range members(p) {
		switch string(k) {
		case "max_new_tokens", "max_tokens":
			b.max = p.Count()
		case "n":
			b.n = p.Count()
		case "temperature":
			b.temperature = p.Float()
		default:
			p.Skip()
		}
	}
}

func (b *requestBody) metadata(p *jsonscan.Parser) {
	for k := range members(p) {
		switch string(k) {
		case "user_id":
			b.user = p.Text()
		case "session_id", "conversation_id", "chat_id":
			b.session = p.Text()
		default:
			p.Skip()
		}
	}
}

func flag(p *jsonscan.Parser) (v traceformat.Opt[bool]) {
	switch p.Peek() {
	case 't':
		v = traceformat.Some(true)
	case 'f':
		v = traceformat.Some(false)
	}
	p.Skip()
	return v
}

// members yields the names of an object's members, each with p at its value. A
// value of another kind is stepped over.
func members(p *jsonscan.Parser) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if !p.Enter('{') {
			p.Skip()
			return
		}
		for k, ok := p.Key(); ok && yield(k); k, ok = p.Key() {
		}
	}
}

// elements yields once for each element of an array, with p at it. A value of
// another kind is stepped over.
func elements(p *jsonscan.Parser) iter.Seq[struct{}] {
	return func(yield func(struct{}) bool) {
		if !p.Enter('[') {
			p.Skip()
			return
		}
		for p.Elem() && yield(struct{}{}) {
		}
	}
}

// member steps over a value and returns the string of that name, if the value is
// an object that has it.
func member(p *jsonscan.Parser, name string) (v []byte) {
	for k := range members(p) {
		if string(k) == name {
			v = p.Text()
		} else {
			p.Skip()
		}
	}
	return v
}
