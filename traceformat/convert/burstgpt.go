package convert

import (
	"io"
	"slices"
	"strings"
	"time"

	"reprise/traceformat"
)

// BurstGPT: _1 and _2 have six columns, _3 knows sessions and elapsed times.
var (
	burstColumns        = []string{"Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"}
	burstSessionColumns = []string{"Timestamp", "Session ID", "Elapsed time", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"}
)

const burstName = "burstgpt"

// Log types of BurstGPT and the classes they become.
var burstClasses = map[string]string{"Conversation log": "conversation", "API log": "api"}

// burstSessions is the word of the style for the columns of _3.
const burstSessions = "sessions"

// errNoResponse is the error class of a BurstGPT request without an answer.
const errNoResponse = "no_response"

var burstGPTFormat = traceformat.Format{
	Name: burstName,
	Detect: func(head []byte) bool {
		h := csvHeader(head)
		return slices.Equal(h, burstColumns) || slices.Equal(h, burstSessionColumns)
	},
	Open: openBurstGPT,
}

func openBurstGPT(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	t, err := openCSV(src, name)
	if err != nil {
		return nil, err
	}
	b := &burstGPT{csvTable: t}
	switch {
	case slices.Equal(t.header, burstColumns):
	case slices.Equal(t.header, burstSessionColumns):
		b.shift = 2
		b.style.add(burstSessions)
	default:
		return nil, t.errorf("header is %.120q, want %s: %w", strings.Join(t.header, ","), strings.Join(burstColumns, ","), traceformat.ErrFormat)
	}
	h := newHeader(burstName)
	h.Lengths = p.lengths
	return newReader(b, readerConfig{header: h, unit: time.Second, params: p})
}

type burstGPT struct {
	*csvTable
	shift    int // columns between Timestamp and Model
	sessions sessions
	extra    extra
}

func (b *burstGPT) read(row *traceformat.Row) error {
	f, err := b.next()
	if err != nil {
		return err
	}
	at, err := parseStamp(f[0], seconds)
	if err != nil {
		return b.broken("Timestamp %.40q %w", f[0], err)
	}
	if b.rows == 0 && strings.Contains(string(f[0]), ".") {
		b.style.add(floatTime)
	}
	in, err := b.tokens(2+b.shift, f)
	if err != nil {
		return err
	}
	out, err := b.tokens(3+b.shift, f)
	if err != nil {
		return err
	}
	b.extra.reset()
	b.extra.csv("Timestamp", f[0], formatTime(at.ns, seconds, slices.Contains(b.style, floatTime)))
	row.ID = b.rows
	row.Arrival = time.Duration(at.ns)
	if b.shift > 0 {
		if err := b.session(row, f); err != nil {
			return err
		}
	}
	row.Model = string(f[1+b.shift])
	row.PromptTokens = traceformat.Some(in)
	row.Result = traceformat.ResultOK
	if out > 0 {
		row.OutputTokens = traceformat.Some(out)
	} else {
		// The authors: a response of 0 tokens is a request that failed.
		row.Result, row.Error = traceformat.ResultServerError, errNoResponse
	}
	b.extra.csv("Request tokens", f[2+b.shift], formatDecimal(int64(in), 0))
	b.extra.csv("Response tokens", f[3+b.shift], formatDecimal(int64(out), 0))
	if _, _, err := parseTokens(f[4+b.shift]); err != nil {
		return b.broken("Total tokens %.40q %w", f[4+b.shift], err)
	}
	b.extra.csv("Total tokens", f[4+b.shift], formatDecimal(int64(in)+int64(out), 0))
	log := string(f[5+b.shift])
	row.Class = burstClasses[log]
	if row.Class == "" {
		b.extra.text("Log Type", log)
	}
	row.Extra = b.extra.result()
	b.rows++
	return nil
}

// session reads what only _3 has. API calls have no session.
func (b *burstGPT) session(row *traceformat.Row, f [][]byte) error {
	if id := string(f[1]); id != "" {
		key, hashed := sessionID(id)
		if hashed {
			b.extra.text("Session ID", id)
		}
		b.sessions.follow(row, key)
	}
	if len(f[2]) > 0 {
		e, err := parseStamp(f[2], seconds)
		if err != nil {
			return b.broken("Elapsed time %.40q %w", f[2], err)
		}
		row.E2E = some(e.ns)
		b.extra.csv("Elapsed time", f[2], formatTime(e.ns, seconds, false))
	}
	return nil
}

func (b *burstGPT) finish(h *traceformat.Header) { finishText(h, b.style, b.extra.dropped) }

var burstGPTTarget = target{
	holds:       []string{"model", "prompt_tokens", "output_tokens", "session_id", "e2e_ns", "class", "outcome", "error"},
	nativeHolds: []string{"parent_id", "turn"},
	open: func(x *export) error {
		return x.put([]byte(strings.Join(x.burstColumns(), ",")))
	},
	write: writeBurstGPT,
}

// burstColumns are the columns of the source, and for traces from elsewhere
// those that hold more.
func (x *export) burstColumns() []string {
	if x.native && !hasStyle(x.header, burstSessions) {
		return burstColumns
	}
	return burstSessionColumns
}

func writeBurstGPT(x *export, row *traceformat.Row) error {
	in, err := x.tokens("Request tokens", "prompt_tokens", row.PromptTokens)
	if err != nil {
		return err
	}
	answer := row.OutputTokens
	if !answer.OK && row.Result != "" && row.Result != traceformat.ResultOK {
		answer = traceformat.Some[int32](0) // what the format says of a failed request
	}
	out, err := x.tokens("Response tokens", "output_tokens", answer)
	if err != nil {
		return err
	}
	total := int64(row.PromptTokens.V) + int64(answer.V)
	at := x.sourceStart + x.arrival(row)
	b := append(x.line[:0], x.number("Timestamp", at, seconds, formatTime(at, seconds, x.native && hasStyle(x.header, floatTime)))...)
	if len(x.burstColumns()) == len(burstSessionColumns) {
		b = appendCSV(append(b, ','), x.sessionText("Session ID", row))
		b = append(b, ',')
		if e, ok := row.E2E.Get(); ok {
			b = append(b, x.number("Elapsed time", int64(e), seconds, formatDecimal(int64(e), seconds))...)
		}
	}
	b = appendCSV(append(b, ','), row.Model)
	b = append(append(b, ','), in...)
	b = append(append(b, ','), out...)
	b = append(b, ',')
	b = append(b, x.burstTotal(total)...)
	b = appendCSV(append(b, ','), x.burstLog(row))
	if !x.native {
		if row.Class != "" && row.Class != "api" && row.Class != "conversation" {
			x.lose("class", "")
		}
		if row.Result != "" && (row.Result == traceformat.ResultOK) != (answer.V > 0) || row.Error != "" && row.Error != errNoResponse {
			x.lose("outcome", "only its tokens are left")
		}
	}
	x.line = b
	return x.put(b)
}

// burstTotal gives the sum of the lengths, or what the source had in its place.
func (x *export) burstTotal(sum int64) string {
	if raw, ok := x.fields["Total tokens"]; ok {
		return rawText(raw)
	}
	return formatDecimal(sum, 0)
}

func (x *export) burstLog(row *traceformat.Row) string {
	for log, class := range burstClasses {
		if row.Class == class {
			return log
		}
	}
	if raw, ok := x.fields["Log Type"]; ok {
		return rawText(raw)
	}
	return "API log"
}

// sessionText gives the source's name of a session, if the row is still in it.
func (x *export) sessionText(key string, row *traceformat.Row) string {
	id, ok := row.Session.Get()
	if !ok {
		return ""
	}
	if raw, ok := x.fields[key]; ok {
		if got, _ := sessionID(rawText(raw)); got == id {
			return rawText(raw)
		}
	}
	return formatDecimal(id, 0)
}
