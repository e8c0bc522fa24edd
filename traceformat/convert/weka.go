package convert

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"reprise/traceformat"
)

const (
	wekaName = "weka"
	// maxSession bounds one session. The largest public ones take some 20 MiB.
	maxSession = 64 << 20
	// maxNesting bounds subagents of subagents. The tool itself writes one level.
	maxNesting = 8
)

// kv-cache-tester (WEKA): a JSON object for each session, one to a file; several
// in one stream are one trace.
var wekaFormat = traceformat.Format{
	Name:   wekaName,
	Detect: func(head []byte) bool { return jsonFormat(head) == wekaName },
	Open:   openWeka,
}

func openWeka(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	w := &weka{r: bufio.NewReaderSize(src, 64<<10), name: name, line: 1}
	if o != nil {
		if w.spacing, err = sessionSpacing(o.Params["sessions"]); err != nil {
			return nil, err
		}
	}
	h := newHeader(wekaName)
	h.Lengths = traceformat.LengthsCumulative
	sorted, err := sortSource(w, o)
	if err != nil {
		return nil, err
	}
	if w.sessions == 0 {
		return nil, errors.Join(&traceformat.RowError{Name: name, Row: -1, Err: traceformat.ErrEmpty}, sorted.Close())
	}
	return newReader(sorted, readerConfig{header: h, unit: time.Millisecond, params: p})
}

// sessionSpacing reads the parameter sessions.
func sessionSpacing(s string) (time.Duration, error) {
	if s == "" || s == "overlap" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("parameter sessions is %q, want overlap or the time between the starts of sessions, like 30s", s)
	}
	return d, nil
}

type weka struct {
	r        *bufio.Reader
	name     string
	line     int64 // where the reader stands
	start    int64 // line on which the current session starts
	buf      []byte
	spacing  time.Duration
	sessions int64

	id    string // of the current session
	scope traceformat.HashScope
	size  int32
	rows  []traceformat.Row // of the current session, not yet read
	next  int64             // id of the next row
	extra extra
}

func (w *weka) read(row *traceformat.Row) error {
	for len(w.rows) == 0 {
		if err := w.session(); err != nil {
			return err
		}
	}
	*row = w.rows[0]
	w.rows = w.rows[1:]
	return nil
}

// where says which session is concerned: a line may hold megabytes.
func (w *weka) where(err error) error {
	if w.id != "" {
		err = fmt.Errorf("session %.80q: %w", w.id, err)
	}
	return &traceformat.RowError{Name: w.name, Row: w.next, Line: w.start, Err: err}
}

// object reads the next JSON object of the stream into w.buf: from a brace to
// the one that closes it.
func (w *weka) object() error {
	w.buf = w.buf[:0]
	depth, quoted, escaped := 0, false, false
	for {
		c, err := w.r.ReadByte()
		switch {
		case err == io.EOF && len(w.buf) == 0:
			return io.EOF
		case err == io.EOF:
			return w.where(fmt.Errorf("%w: the session has no end", traceformat.ErrTruncated))
		case err != nil:
			return w.where(err)
		}
		if c == '\n' {
			w.line++
		}
		if len(w.buf) == 0 {
			w.start, w.id = w.line, ""
			switch c {
			case ' ', '\t', '\r', '\n', 0xef, 0xbb, 0xbf: // space, or a byte order mark
				continue
			case '{':
			default:
				return w.where(fmt.Errorf("%q where a session has to start: not a JSON object", c))
			}
		}
		if len(w.buf) == maxSession {
			return w.where(fmt.Errorf("session is longer than %d MiB", maxSession>>20))
		}
		w.buf = append(w.buf, c)
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return nil
			}
		}
	}
}

// session reads one session and makes its rows, in order of arrival.
func (w *weka) session() error {
	if err := w.object(); err != nil {
		return err
	}
	if !utf8.Valid(w.buf) {
		return w.where(errors.New("the session is not UTF-8"))
	}
	members, err := parseObject(nil, w.buf)
	if err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) && syntax.Offset <= int64(len(w.buf)) {
			w.start += int64(bytes.Count(w.buf[:syntax.Offset], []byte("\n")))
		}
		return w.where(err)
	}
	if w.id, _, err = parseText(get(members, "id")); err != nil || w.id == "" {
		return w.where(errors.New("the session has no id"))
	}
	if err := w.blocks(members); err != nil {
		return w.where(err)
	}
	requests := get(members, "requests")
	if len(requests) == 0 || requests[0] != '[' {
		return w.where(errors.New("the session has no list of requests"))
	}
	agent := &wekaAgent{name: w.id, offset: w.spacing * time.Duration(w.sessions), hash: w.sessionHash()}
	agent.session, _ = sessionID(agent.name)
	if w.sessions > 0 && agent.offset/time.Duration(w.sessions) != w.spacing {
		return w.where(errors.New("sessions are spaced beyond what a time can hold"))
	}
	agent.meta = []wekaMeta{{"session_meta", members, []string{"id", "requests"}}}
	w.rows = w.rows[:0]
	if err := w.requests(agent, requests, 0); err != nil {
		return err
	}
	slices.SortStableFunc(w.rows, func(a, b traceformat.Row) int { return a.Compare(&b) })
	w.sessions++
	return nil
}

// blocks checks that the session's ids are as those of the sessions before.
func (w *weka) blocks(members []member) error {
	size, exact, err := parseTokens(get(members, "block_size"))
	if err != nil || !exact || size < 1 {
		return fmt.Errorf("block_size %.40s is not a number of tokens", get(members, "block_size"))
	}
	var scope traceformat.HashScope
	switch s, _, _ := parseText(get(members, "hash_id_scope")); s {
	case "local":
		scope = traceformat.ScopeSession
	case "global":
		scope = traceformat.ScopeGlobal
	default:
		return fmt.Errorf("hash_id_scope is %.40q, want local or global", s)
	}
	if w.sessions > 0 && (size != w.size || scope != w.scope) {
		return fmt.Errorf("blocks of %d tokens with ids of scope %s, and the sessions before have %d and %s: convert them apart", size, scope, w.size, w.scope)
	}
	w.size, w.scope = size, scope
	return nil
}

// wekaAgent is a conversation of a session: its own or one of a subagent.
type wekaAgent struct {
	name    string
	session int64
	hash    uint64 // mixed into block ids
	offset  time.Duration
	parent  traceformat.Opt[int64] // id of its last row
	turn    int32
	spawn   traceformat.Opt[int64] // row after which a subagent was started
	meta    []wekaMeta             // for its first row
	agents  map[string]int         // subagents by agent_id
}

// wekaMeta are fields of a session or a subagent that become one of Extra.
type wekaMeta struct {
	key     string
	members []member
	but     []string
}

func (w *weka) requests(agent *wekaAgent, list []byte, depth int) error {
	if depth > maxNesting {
		return w.where(fmt.Errorf("subagents are nested deeper than %d", maxNesting))
	}
	n := 0
	for raw := range scanArray(list) {
		members, err := membersOf(nil, raw)
		if err == nil {
			var kind string
			kind, _, _ = parseText(get(members, "type"))
			switch kind {
			case "n", "s":
				err = w.request(agent, members, kind == "s")
			case "subagent":
				err = w.subagent(agent, members, depth)
			default:
				err = fmt.Errorf("type is %.40q, want n, s or subagent", kind)
			}
		}
		var located *traceformat.RowError
		if err != nil && !errors.As(err, &located) {
			err = w.where(fmt.Errorf("request %d of %.80q: %w", n, agent.name, err))
		}
		if err != nil {
			return err
		}
		n++
	}
	return nil
}

// subagent makes rows of a subagent's requests: a conversation of its own.
func (w *weka) subagent(parent *wekaAgent, members []member, depth int) error {
	t, err := parseStamp(get(members, "t"), seconds)
	if err != nil {
		return fmt.Errorf("t %.40s %w", get(members, "t"), err)
	}
	id, _, err := parseText(get(members, "agent_id"))
	if err != nil {
		return fmt.Errorf("agent_id %w", err)
	}
	requests := get(members, "requests")
	if len(requests) == 0 || requests[0] != '[' {
		return errors.New("the subagent has no list of requests")
	}
	if parent.agents == nil {
		parent.agents = map[string]int{}
	}
	name := parent.name + "/" + id
	if parent.agents[id]++; parent.agents[id] > 1 {
		name += "#" + strconv.Itoa(parent.agents[id])
	}
	agent := &wekaAgent{
		name: name, hash: parent.hash, offset: parent.offset, spawn: parent.parent,
		meta: append(parent.meta, wekaMeta{"subagent", members, []string{"type", "requests"}}),
	}
	agent.session, _ = sessionID(name)
	// Times inside a subagent count from its start in the public files; some
	// tools write them from the start of the session.
	for first := range scanArray(requests) {
		inner, err := membersOf(nil, first)
		if err != nil {
			return err
		}
		if at, err := parseStamp(get(inner, "t"), seconds); err == nil && at.ns < t.ns {
			agent.offset += time.Duration(t.ns)
		}
		break
	}
	parent.meta = nil
	return w.requests(agent, requests, depth+1)
}

var wekaFields = []string{"t", "type", "model", "in", "out", "hash_ids", "stop", "api_time", "ttft", "think_time"}

// wekaStops are the stop reasons that have names of their own here. Each name
// stands for one reason only.
var wekaStops = map[string]string{"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}

func (w *weka) request(agent *wekaAgent, members []member, stream bool) error {
	w.extra.reset()
	w.extra.text("session", agent.name)
	for _, m := range agent.meta {
		w.extra.object(m.key, m.members, m.but)
	}
	agent.meta = nil
	if id, ok := agent.spawn.Get(); ok {
		w.extra.keep("spawned_after", []byte(strconv.FormatInt(id, 10)))
		agent.spawn = traceformat.Opt[int64]{}
	}
	row := traceformat.Row{}
	row.ID = w.next
	row.Session = traceformat.Some(agent.session)
	row.Turn = traceformat.Some(agent.turn)
	row.Parent = agent.parent
	row.Stream = traceformat.Some(stream)

	raw := get(members, "t")
	at, err := parseStamp(raw, seconds)
	if err != nil {
		return fmt.Errorf("t %.40s %w", raw, err)
	}
	if int64(agent.offset) > maxStamp-at.ns {
		return fmt.Errorf("t %w", errTooLarge)
	}
	row.Arrival = agent.offset + time.Duration(at.ns)
	w.rounded("t", raw, at)
	for _, f := range []struct {
		key string
		to  *traceformat.Opt[time.Duration]
	}{{"api_time", &row.E2E}, {"ttft", &row.TTFT}, {"think_time", &row.Think}} {
		raw := get(members, f.key)
		if raw == nil {
			continue
		}
		v, err := parseStamp(raw, seconds)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.key, raw, err)
		}
		*f.to = some(v.ns)
		w.rounded(f.key, raw, v)
	}
	for _, f := range []struct {
		key string
		to  *traceformat.Opt[int32]
	}{{"in", &row.PromptTokens}, {"out", &row.OutputTokens}} {
		raw := get(members, f.key)
		v, _, err := parseTokens(raw)
		if err != nil {
			return fmt.Errorf("%s %.40s %w", f.key, raw, err)
		}
		*f.to = traceformat.Some(v)
	}
	if raw := get(members, "hash_ids"); raw != nil {
		ids, err := parseIDs(nil, raw)
		if err != nil {
			return fmt.Errorf("hash_ids %w", err)
		}
		if want := int(row.PromptTokens.V / w.size); len(ids) != want && len(ids) > 0 {
			return fmt.Errorf("%d block ids for %d tokens, want %d whole blocks of %d", len(ids), row.PromptTokens.V, want, w.size)
		}
		if w.scope == traceformat.ScopeSession {
			for i, id := range ids {
				ids[i] = mix64(id) ^ agent.hash
			}
		}
		row.PrefixBlocks = ids
	}
	if row.Model, _, err = parseText(get(members, "model")); err != nil {
		row.Model = ""
	}
	if raw := get(members, "stop"); raw != nil {
		stop, _, err := parseText(raw)
		if err != nil {
			return fmt.Errorf("stop %w", err)
		}
		if stop != "" {
			row.Result = traceformat.ResultOK
			row.FinishReason = stop
		}
		if name, ok := wekaStops[stop]; ok {
			row.FinishReason = name
		}
	}
	for _, f := range members {
		if !slices.Contains(wekaFields, f.key) {
			w.extra.field(f.key, f.value)
		}
	}
	row.Extra = w.extra.result()
	w.rows = append(w.rows, row)
	agent.parent = traceformat.Some(row.ID)
	agent.turn++
	w.next++
	return nil
}

// rounded keeps a time that nanoseconds cannot hold.
func (w *weka) rounded(key string, raw []byte, s stamp) {
	if !s.exact {
		w.extra.keep(key, raw)
	}
}

// object stores some members as an object of their own.
func (e *extra) object(key string, members []member, but []string) {
	inner := extra{dropped: e.dropped}
	inner.reset()
	for _, m := range members {
		if !slices.Contains(but, m.key) {
			inner.field(m.key, m.value)
		}
	}
	e.dropped = inner.dropped
	if object := inner.result(); object != "" {
		e.keep(key, []byte(object))
	}
}

func (w *weka) finish(h *traceformat.Header) {
	h.Blocks = traceformat.Blocks{Size: w.size, Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialDropped, Scheme: schemeSequence}
	if w.scope == traceformat.ScopeSession {
		h.Blocks.Scheme = schemeMixed
	}
	finishText(h, nil, w.extra.dropped)
}

// schemeMixed says that block ids are those of a session, made global: see
// [LocalBlockID].
const schemeMixed = "session-mix64"

// sessionHash is what tells the block ids of one session from those of another:
// subagents share the ids of their session.
func (w *weka) sessionHash() uint64 {
	sum := sha256.Sum256([]byte(w.id))
	return binary.LittleEndian.Uint64(sum[:8])
}

// LocalBlockID gives back the id that a block had in the session file it came
// from: session is the id in that file, which Extra holds under "session" up to
// the first slash. It undoes
//
//	global = mix64(local) XOR first 8 bytes of SHA-256(session), little endian
//
// with mix64 the finaliser of SplitMix64, which is a bijection.
func LocalBlockID(session string, global uint64) uint64 {
	w := weka{id: session}
	return unmix64(global ^ w.sessionHash())
}

// mix64 is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
func mix64(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// unmix64 undoes mix64: the multipliers are the inverses modulo 2^64.
func unmix64(z uint64) uint64 {
	z = (z ^ z>>31 ^ z>>62) * 0x319642b2d24d8ec3
	z = (z ^ z>>27 ^ z>>54) * 0x96de1b173f119089
	return z ^ z>>30 ^ z>>60
}
