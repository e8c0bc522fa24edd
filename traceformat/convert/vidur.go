package convert

import (
	"io"
	"slices"
	"strings"
	"time"

	"reprise/traceformat"
)

const (
	vidurName    = "vidur"
	vidurArrived = "arrived_at"
	vidurPrefill = "num_prefill_tokens"
	vidurDecode  = "num_decode_tokens"
	vidurSession = "session_id"
)

// Vidur: columns by name, others may stand beside them. A file without
// arrived_at is one of Vidur's length files; it is recognised, so that opening
// it can say what is missing.
var vidurFormat = traceformat.Format{
	Name: vidurName,
	Detect: func(head []byte) bool {
		h := csvHeader(head)
		return slices.Contains(h, vidurPrefill) && slices.Contains(h, vidurDecode)
	},
	Open: openVidur,
}

func openVidur(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	t, err := openCSV(src, name)
	if err != nil {
		return nil, err
	}
	v := &vidur{csvTable: t, arrived: -1, prefill: -1, decode: -1, session: -1}
	for i, column := range t.header {
		at := map[string]*int{vidurArrived: &v.arrived, vidurPrefill: &v.prefill, vidurDecode: &v.decode, vidurSession: &v.session}[column]
		switch {
		case slices.Contains(t.header[:i], column):
			return nil, t.errorf("column %.40q comes twice", column)
		case at != nil:
			*at = i
		}
	}
	switch {
	case v.prefill < 0 || v.decode < 0:
		return nil, t.errorf("header is %.80q, want %s,%s,%s: %w", strings.Join(t.header, ","), vidurArrived, vidurPrefill, vidurDecode, traceformat.ErrFormat)
	case v.arrived < 0:
		return nil, t.errorf("no column %s: the file has lengths and no times, so that it cannot be replayed; synth can draw times for it", vidurArrived)
	}
	h := newHeader(vidurName)
	h.Lengths = p.lengths
	return newReader(v, readerConfig{header: h, unit: time.Nanosecond, params: p})
}

type vidur struct {
	*csvTable
	arrived, prefill, decode, session int // columns, -1 where absent
	sessions                          sessions
	extra                             extra
}

func (v *vidur) read(row *traceformat.Row) error {
	f, err := v.next()
	if err != nil {
		return err
	}
	at, err := parseStamp(f[v.arrived], seconds)
	if err != nil {
		return v.broken("%s %.40q %w", vidurArrived, f[v.arrived], err)
	}
	in, err := v.tokens(v.prefill, f)
	if err != nil {
		return err
	}
	out, err := v.tokens(v.decode, f)
	if err != nil {
		return err
	}
	row.ID = v.rows
	row.Arrival = time.Duration(at.ns)
	row.PromptTokens = traceformat.Some(in)
	row.OutputTokens = traceformat.Some(out)
	v.extra.reset()
	for i, column := range v.header {
		switch i {
		case v.arrived:
			v.extra.csv(column, f[i], formatFloat(at.ns, seconds))
		case v.prefill:
			v.extra.csv(column, f[i], formatDecimal(int64(in), 0))
		case v.decode:
			v.extra.csv(column, f[i], formatDecimal(int64(out), 0))
		case v.session:
			if len(f[i]) == 0 {
				continue
			}
			key, hashed := sessionID(string(f[i]))
			if hashed {
				v.extra.text(column, string(f[i]))
			}
			v.sessions.follow(row, key)
		default:
			v.extra.column(column, f[i])
		}
	}
	row.Extra = v.extra.result()
	v.rows++
	return nil
}

func (v *vidur) finish(h *traceformat.Header) { finishText(h, v.style, v.extra.dropped) }
