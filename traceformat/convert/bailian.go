package convert

import (
	"io"
	"slices"
	"strconv"
	"time"

	"reprise/traceformat"
)

const (
	bailianName  = "bailian"
	bailianBlock = 16
	bailianRoot  = -1 // parent_chat_id of a conversation's first request
)

var bailianFormat = traceformat.Format{
	Name:   bailianName,
	Detect: func(head []byte) bool { return jsonFormat(head) == bailianName },
	Open:   openBailian,
}

func openBailian(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	h := newHeader(bailianName)
	h.Lengths = traceformat.LengthsCumulative
	b := &bailian{jsonRow: jsonRow{lines: newLines(src, name)}}
	r, err := newReader(b, readerConfig{header: h, unit: time.Millisecond, params: p})
	if err != nil {
		return nil, err
	}
	if b.rows == 0 {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: traceformat.ErrEmpty}
	}
	return r, nil
}

type bailian struct {
	jsonRow
	blocks bool // some row has block ids
	ids    []uint64
	chats  turns[bailianChat]
	extra  extra
}

// bailianChat is what a later chat has to know of the one it continues.
type bailianChat struct{ row, session int64 }

var bailianFields = []string{
	"chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "type", "turn", "hash_ids",
}

func (b *bailian) read(row *traceformat.Row) error {
	if err := b.next(); err != nil {
		return err
	}
	b.extra.reset()
	row.ID = b.rows
	if err := b.chat(row); err != nil {
		return err
	}
	raw := b.get("timestamp")
	at, err := parseStamp(raw, seconds)
	if err != nil {
		return b.errorf("timestamp %.40s %w", raw, err)
	}
	if b.rows == 0 && string(raw) == formatFloat(at.ns, seconds) {
		b.style.add(floatTime)
	}
	b.extra.number("timestamp", raw, formatTime(at.ns, seconds, slices.Contains(b.style, floatTime)))
	row.Arrival = time.Duration(at.ns)
	if row.PromptTokens, err = b.tokens(&b.extra, b.first("input_length"), "input_length"); err != nil {
		return err
	}
	if row.OutputTokens, err = b.tokens(&b.extra, b.first("output_length"), "output_length"); err != nil {
		return err
	}
	if !row.PromptTokens.OK || !row.OutputTokens.OK {
		return b.errorf("input_length or output_length is missing")
	}
	if raw := b.get("type"); raw != nil {
		var quoted bool
		if row.Class, quoted, err = parseText(raw); err != nil || !quoted {
			return b.errorf("type %.40s is not a string", raw)
		}
		b.extra.number("type", raw, string(appendJSONString(nil, row.Class)))
	}
	if raw := b.get("hash_ids"); raw != nil {
		if b.ids, err = parseIDs(b.ids[:0], raw); err != nil {
			return b.errorf("hash_ids %w", err)
		}
		row.PrefixBlocks = b.ids
		b.blocks = true
	}
	for _, f := range b.members {
		if !slices.Contains(bailianFields, f.key) {
			b.extra.field(f.key, f.value)
		}
	}
	row.Extra = b.extra.result()
	b.rows++
	return nil
}

// chat places the row in its conversation: the chain of parents up to a root.
// Chat ids are the file's own and stay in Extra; rows count from 0.
func (b *bailian) chat(row *traceformat.Row) error {
	raw := b.get("chat_id")
	id, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || id < 0 || id >= hashedSession {
		return b.errorf("chat_id %.40s is not a number from 0", raw)
	}
	b.extra.keep("chat_id", raw)
	session := id
	if raw := b.get("parent_chat_id"); raw != nil {
		parent, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || parent < bailianRoot || parent >= hashedSession {
			return b.errorf("parent_chat_id %.40s is not a number from -1", raw)
		}
		b.extra.keep("parent_chat_id", raw)
		if parent != bailianRoot {
			// A parent that is not in the file, or too far back to be known, is
			// taken for the root.
			session = parent
			if p, ok := b.chats.get(parent); ok {
				session = p.session
				row.Parent = traceformat.Some(p.row)
			}
		}
	}
	row.Session = traceformat.Some(session)
	b.chats.set(id, bailianChat{row.ID, session})
	if raw := b.get("turn"); raw != nil {
		n, exact, err := parseTokens(raw)
		if err != nil || !exact || n < 1 {
			return b.errorf("turn %.40s is not a number from 1", raw)
		}
		row.Turn = traceformat.Some(n - 1)
		b.extra.number("turn", raw, formatDecimal(int64(n), 0))
	}
	return nil
}

func (b *bailian) finish(h *traceformat.Header) {
	if b.blocks {
		h.Blocks = traceformat.Blocks{
			Size: bailianBlock, Scheme: "siphash-2-4-remapped", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialPadded,
		}
	}
	finishText(h, b.style, b.extra.dropped)
}

var bailianTarget = target{
	holds: []string{"prompt_tokens", "output_tokens", "prefix_blocks", "session_id", "parent_id", "turn", "class"},
	open: func(x *export) error {
		x.json.compact = x.native && hasStyle(x.header, compactJSON)
		return x.needBlocks(bailianBlock, traceformat.PartialPadded, traceformat.PartialKept)
	},
	write: writeBailian,
}

func writeBailian(x *export, row *traceformat.Row) error {
	in, err := x.tokens("input_length", "prompt_tokens", row.PromptTokens)
	if err != nil {
		return err
	}
	out, err := x.tokens("output_length", "output_tokens", row.OutputTokens)
	if err != nil {
		return err
	}
	w := &x.json
	w.buf = w.buf[:0]
	w.open()
	chat, ok := x.fields["chat_id"]
	if !ok {
		chat = formatDecimal(row.ID, 0)
	}
	w.raw("chat_id", chat)
	parent, ok := x.fields["parent_chat_id"]
	if !ok && !x.native {
		parent, ok = formatDecimal(row.Parent.Or(bailianRoot), 0), true
	}
	if ok {
		w.raw("parent_chat_id", parent)
	}
	at := x.sourceStart + x.arrival(row)
	w.raw("timestamp", x.number("timestamp", at, seconds, formatTime(at, seconds, !x.native || hasStyle(x.header, floatTime))))
	w.raw("input_length", in)
	w.raw("output_length", out)
	class := row.Class
	if class == "" && !x.native {
		class = "text"
	}
	if raw, ok := x.fields["type"]; ok && rawText(raw) == class {
		w.raw("type", raw)
	} else if class != "" {
		w.text("type", class)
	}
	if n, ok := row.Turn.Get(); ok || !x.native {
		v := int64(n) + 1
		w.raw("turn", x.number("turn", v, 0, formatDecimal(v, 0)))
	}
	if err := x.blocks(row); err != nil {
		return err
	}
	if x.native {
		if err := x.otherFields(row, bailianFields); err != nil {
			return err
		}
	}
	w.close()
	return x.put(w.buf)
}
