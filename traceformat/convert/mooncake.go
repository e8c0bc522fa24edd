package convert

import (
	"fmt"
	"io"
	"slices"
	"time"

	"reprise/traceformat"
)

const (
	mooncakeName = "mooncake"
	// mooncakeBlock is the block size of the published traces. Files of other
	// tools say theirs nowhere.
	mooncakeBlock = 512
)

var mooncakeFormat = traceformat.Format{
	Name:   mooncakeName,
	Detect: func(head []byte) bool { return jsonFormat(head) == mooncakeName },
	Open:   openMooncake,
}

func openMooncake(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	h := newHeader(mooncakeName)
	m := &mooncake{jsonRow: jsonRow{lines: newLines(src, name)}, lengths: p.lengths, block: p.blockSize}
	if m.block == 0 {
		m.block = mooncakeBlock
	}
	r, err := newReader(m, readerConfig{header: h, unit: time.Millisecond, params: p})
	if err != nil {
		return nil, err
	}
	if m.rows == 0 {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: traceformat.ErrEmpty}
	}
	return r, nil
}

type mooncake struct {
	jsonRow
	lengths  traceformat.LengthRule
	block    int32
	blocks   bool // some row has block ids
	ids      []uint64
	sessions sessions
	last     int64 // arrival of the row before
	extra    extra
}

// jsonNumber is a field that holds a number, with its text.
type jsonNumber struct {
	key string
	raw []byte
}

// first returns the first of keys that is there.
func (r *jsonRow) first(keys ...string) jsonNumber {
	for _, k := range keys {
		if v := r.get(k); v != nil {
			return jsonNumber{k, v}
		}
	}
	return jsonNumber{}
}

// tokens reads an optional length and keeps its spelling under name.
func (r *jsonRow) tokens(e *extra, n jsonNumber, name string) (traceformat.Opt[int32], error) {
	if n.raw == nil {
		return traceformat.Opt[int32]{}, nil
	}
	v, _, err := parseTokens(n.raw)
	if err != nil {
		return traceformat.Opt[int32]{}, r.errorf("%s %.40s %w", n.key, n.raw, err)
	}
	e.number(name, n.raw, formatDecimal(int64(v), 0))
	return traceformat.Some(v), nil
}

var mooncakeFields = []string{
	"timestamp", "created_time", "input_length", "input_tokens", "output_length", "output_tokens",
	"hash_ids", "session_id", "delay", "delay_ms",
}

func (m *mooncake) read(row *traceformat.Row) error {
	if err := m.next(); err != nil {
		return err
	}
	m.extra.reset()
	row.ID = m.rows
	var err error
	if row.PromptTokens, err = m.tokens(&m.extra, m.first("input_length", "input_tokens"), "input_length"); err != nil {
		return err
	}
	if row.OutputTokens, err = m.tokens(&m.extra, m.first("output_length", "output_tokens"), "output_length"); err != nil {
		return err
	}
	if err := m.time(row); err != nil {
		return err
	}
	if err := m.prefix(row); err != nil {
		return err
	}
	for _, f := range m.members {
		if !slices.Contains(mooncakeFields, f.key) {
			m.extra.field(f.key, f.value)
		}
	}
	row.Extra = m.extra.result()
	m.last = int64(row.Arrival)
	m.rows++
	return nil
}

// time reads when a row was sent, which may be said relative to the turn before.
func (m *mooncake) time(row *traceformat.Row) error {
	delay, session := m.first("delay", "delay_ms"), m.get("session_id")
	if session != nil || delay.raw != nil {
		if m.lengths == "" {
			return m.errorf("the row has a session or a delay, and Mooncake files do not say whether input_length of a later turn " +
				"counts the whole conversation or only what the turn adds: give the parameter lengths=cumulative or lengths=incremental")
		}
	}
	var pause stamp
	if delay.raw != nil {
		var err error
		if pause, err = parseStamp(delay.raw, milliseconds); err != nil {
			return m.errorf("%s %.40s %w", delay.key, delay.raw, err)
		}
		row.Delay = some(pause.ns)
		m.extra.number("delay", delay.raw, formatDecimal(pause.ns, milliseconds))
	}
	at := m.first("timestamp", "created_time")
	if at.raw != nil {
		t, err := parseStamp(at.raw, milliseconds)
		if err != nil {
			return m.errorf("%s %.40s %w", at.key, at.raw, err)
		}
		if m.rows == 0 && string(at.raw) == formatFloat(t.ns, milliseconds) {
			m.style.add(floatTime)
		}
		m.extra.number("timestamp", at.raw, formatTime(t.ns, milliseconds, slices.Contains(m.style, floatTime)))
		row.Arrival = time.Duration(t.ns)
	}
	if session == nil {
		if at.raw == nil {
			return m.errorf("the row has neither a timestamp nor a session: when was it sent?")
		}
		return nil
	}
	id, quoted, err := parseText(session)
	if err != nil {
		return m.errorf("session_id %w", err)
	}
	key, hashed := sessionID(id)
	if hashed || quoted {
		m.extra.keep("session_id", session)
	}
	if at.raw == nil {
		// When a later turn was sent depends on how long the answer before it
		// took, which such a file does not know. The earliest time that keeps
		// the rows in order stands for it; Delay holds what is known.
		before, _ := m.sessions.get(key)
		if before.arrival > maxStamp-pause.ns {
			return m.errorf("delay %w", errTooLarge)
		}
		row.Arrival = time.Duration(max(before.arrival+pause.ns, m.last))
		m.extra.keep("timestamp", []byte("null"))
	}
	m.sessions.follow(row, key)
	return nil
}

// prefix reads the block ids.
func (m *mooncake) prefix(row *traceformat.Row) error {
	raw := m.get("hash_ids")
	if raw == nil {
		return nil
	}
	ids, err := parseIDs(m.ids[:0], raw)
	if err != nil {
		return m.errorf("hash_ids %w", err)
	}
	m.ids = ids
	row.PrefixBlocks = ids
	m.blocks = true
	in, ok := row.PromptTokens.Get()
	if !ok || m.lengths == traceformat.LengthsIncremental {
		return nil
	}
	if want := blocksKept(in, m.block); len(ids) != want {
		return m.errorf("%d block ids for %d tokens, want %d blocks of %d with the last one kept%s",
			len(ids), in, want, m.block, blockSizeHint(in, len(ids)))
	}
	return nil
}

// blocksKept is the number of blocks of a prompt whose partial last block has an
// id of its own.
func blocksKept(tokens, size int32) int {
	return int((int64(tokens) + int64(size) - 1) / int64(size))
}

// blockSizeHint names the usual block sizes under which n ids would be right.
func blockSizeHint(tokens int32, n int) string {
	for _, size := range []int32{16, 32, 64, 128, 256, 512, 1024} {
		if blocksKept(tokens, size) == n {
			return fmt.Sprintf(": if the file was made with blocks of %d, say block_size=%d", size, size)
		}
	}
	return ""
}

func (m *mooncake) finish(h *traceformat.Header) {
	h.Lengths = m.lengths
	if h.Lengths == "" {
		h.Lengths = traceformat.LengthsCumulative
	}
	if m.blocks {
		h.Blocks = traceformat.Blocks{
			Size: m.block, Scheme: schemeSequence, Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialKept,
		}
	}
	finishText(h, m.style, m.extra.dropped)
}

// schemeSequence says that block ids are integers in order of first appearance.
const schemeSequence = "sequence"

var mooncakeTarget = target{
	holds:       []string{"prompt_tokens", "output_tokens", "prefix_blocks"},
	nativeHolds: []string{"session_id", "parent_id", "turn", "delay_ns"},
	open: func(x *export) error {
		x.json.compact = x.native && hasStyle(x.header, compactJSON)
		return x.needBlocks(mooncakeBlock, traceformat.PartialKept)
	},
	write: writeMooncake,
}

func writeMooncake(x *export, row *traceformat.Row) error {
	w := &x.json
	w.buf = w.buf[:0]
	w.open()
	if at := x.sourceStart + x.arrival(row); x.fields["timestamp"] != "null" {
		w.raw("timestamp", x.number("timestamp", at, milliseconds, formatTime(at, milliseconds, x.native && hasStyle(x.header, floatTime))))
	}
	for _, f := range []struct {
		key, column string
		v           traceformat.Opt[int32]
	}{{"input_length", "prompt_tokens", row.PromptTokens}, {"output_length", "output_tokens", row.OutputTokens}} {
		if x.native && !f.v.OK {
			continue // the source had none either
		}
		n, err := x.tokens(f.key, f.column, f.v)
		if err != nil {
			return err
		}
		w.raw(f.key, n)
	}
	if err := x.blocks(row); err != nil {
		return err
	}
	if x.native {
		x.mooncakeTurn(row)
		if err := x.otherFields(row, mooncakeFields); err != nil {
			return err
		}
	}
	w.close()
	return x.put(w.buf)
}

// mooncakeTurn writes the extensions for conversations. Traces from elsewhere do
// without: a session id makes tools replay the file closed loop, with delays
// that such a trace does not have.
func (x *export) mooncakeTurn(row *traceformat.Row) {
	if id, ok := row.Session.Get(); ok {
		raw, kept := x.fields["session_id"]
		if got, _ := sessionID(rawText(raw)); !kept || got != id {
			raw = formatDecimal(id, 0)
		}
		x.json.raw("session_id", raw)
	}
	if d, ok := row.Delay.Get(); ok {
		x.json.raw("delay", x.number("delay", int64(d), milliseconds, formatDecimal(int64(d), milliseconds)))
	}
}

// blocks writes hash_ids.
func (x *export) blocks(row *traceformat.Row) error {
	if x.OmitBlocks || row.PrefixBlocks == nil && x.native {
		if row.PrefixBlocks != nil {
			x.lose("prefix_blocks", "")
		}
		return nil
	}
	if row.PrefixBlocks == nil {
		return fmt.Errorf("%w: no prefix_blocks", errIncomplete)
	}
	x.json.ids("hash_ids", row.PrefixBlocks)
	return nil
}

// otherFields writes what the source had beyond the fields of its format.
func (x *export) otherFields(row *traceformat.Row, known []string) error {
	if row.Extra == "" {
		return nil
	}
	members, err := parseObject(nil, []byte(row.Extra))
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.key != offTick && !slices.Contains(known, m.key) {
			x.json.raw(m.key, string(m.value))
		}
	}
	return nil
}
