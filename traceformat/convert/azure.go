package convert

import (
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"reprise/traceformat"
)

// Azure LLM inference traces: 2023 and 2024 have three columns, the LMM trace
// of 2025 counts images as well.
var (
	azureColumns      = []string{"TIMESTAMP", "ContextTokens", "GeneratedTokens"}
	azureImageColumns = []string{"TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens"}
)

const azureName = "azure"

var azureFormat = traceformat.Format{
	Name: azureName,
	Detect: func(head []byte) bool {
		h := csvHeader(head)
		return slices.Equal(h, azureColumns) || slices.Equal(h, azureImageColumns)
	},
	Open: openAzure,
}

// Words of the style of an Azure file.
const (
	azureDigits7 = "digits7" // always seven fractional digits, no zone: 2023
	azureZone    = "zone"    // +00:00 follows, six digits or none: 2024
	azureImages  = "images"  // a column NumImages
)

func openAzure(src io.Reader, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	t, err := openCSV(src, name)
	if err != nil {
		return nil, err
	}
	a := &azure{csvTable: t}
	switch {
	case slices.Equal(t.header, azureColumns):
	case slices.Equal(t.header, azureImageColumns):
		a.images = 1
		a.style.add(azureImages)
	default:
		return nil, t.errorf("header is %.80q, want %s: %w", strings.Join(t.header, ","), strings.Join(azureColumns, ","), traceformat.ErrFormat)
	}
	return newReader(a, readerConfig{header: newHeader(azureName), unit: 100, dated: true, params: p})
}

type azure struct {
	*csvTable
	images int // 1 where NumImages stands before the lengths
	extra  extra
}

func (a *azure) read(row *traceformat.Row) error {
	f, err := a.next()
	if err != nil {
		return err
	}
	at, err := parseAzureTime(string(f[0]))
	if err != nil {
		return a.broken("TIMESTAMP %.40q %w", f[0], err)
	}
	if a.rows == 0 {
		a.chooseStyle(at, string(f[0]))
	}
	in, err := a.tokens(1+a.images, f)
	if err != nil {
		return err
	}
	out, err := a.tokens(2+a.images, f)
	if err != nil {
		return err
	}
	a.extra.reset()
	a.extra.csv("TIMESTAMP", f[0], formatAzureTime(at, a.style))
	a.extra.csv("ContextTokens", f[1+a.images], formatDecimal(int64(in), 0))
	a.extra.csv("GeneratedTokens", f[2+a.images], formatDecimal(int64(out), 0))
	if a.images == 1 {
		n, exact, err := parseTokens(f[1])
		if err != nil {
			return a.broken("NumImages %.40q %w", f[1], err)
		}
		if exact && formatDecimal(int64(n), 0) == string(f[1]) {
			a.extra.keep("NumImages", f[1])
		} else {
			a.extra.text("NumImages", string(f[1]))
		}
	}
	row.ID = a.rows
	row.Arrival = time.Duration(at)
	row.PromptTokens = traceformat.Some(in)
	row.OutputTokens = traceformat.Some(out)
	row.Extra = a.extra.result()
	a.rows++
	return nil
}

// chooseStyle takes the first row's spelling for the file's.
func (a *azure) chooseStyle(at int64, text string) {
	for _, s := range []style{{azureDigits7}, {azureZone}} {
		if formatAzureTime(at, s) == text {
			a.style.add(s[0])
			return
		}
	}
}

func (a *azure) finish(h *traceformat.Header) { finishText(h, a.style, a.extra.dropped) }

// tokens reads the length in column i of a CSV row.
func (t *csvTable) tokens(i int, f [][]byte) (int32, error) {
	n, _, err := parseTokens(f[i])
	if err != nil {
		return 0, t.broken("%s %.40q %w", t.header[i], f[i], err)
	}
	return n, nil
}

func (l *lines) where(err error) error {
	// The row that was read last has been counted.
	return &traceformat.RowError{Name: l.name, Row: l.rows - 1, Line: l.line, Err: err}
}

var errAzureTime = errors.New("is not a time like 2023-11-16 18:17:03.9799600")

// parseAzureTime reads a date and a time of day with up to nine fractional
// digits and an optional offset from UTC. Without one it is UTC.
func parseAzureTime(s string) (int64, error) {
	const layout = "2006-01-02 15:04:05"
	if len(s) < len(layout) || s[10] != ' ' && s[10] != 'T' {
		return 0, errAzureTime
	}
	var zone string
	head := s
	if i := strings.LastIndexAny(s[len(layout):], "+-Z"); i >= 0 {
		i += len(layout)
		head, zone = s[:i], s[i:]
	}
	if dot := head[len(layout):]; dot != "" && (dot[0] != '.' || len(dot) < 2 || len(dot) > 10) {
		return 0, errAzureTime
	}
	at, err := time.Parse(layout, head[:10]+" "+head[11:])
	if err != nil {
		return 0, errAzureTime
	}
	if zone != "" && zone != "Z" {
		z, err := time.Parse("-07:00", zone)
		if err != nil {
			return 0, errAzureTime
		}
		_, offset := z.Zone()
		at = at.Add(-time.Duration(offset) * time.Second)
	}
	if at.Year() < 1970 || at.Year() > 2115 {
		return 0, errTooLarge
	}
	return at.UnixNano(), nil
}

// formatAzureTime writes a Unix time as files of that style do.
func formatAzureTime(ns int64, s style) string {
	at := time.Unix(0, ns).UTC()
	out := at.Format("2006-01-02 15:04:05")
	frac := ns % int64(time.Second)
	switch {
	case slices.Contains(s, azureDigits7) && frac%100 == 0:
		out += at.Format(".0000000")
	case frac == 0:
	case frac%1000 == 0:
		out += at.Format(".000000")
	default:
		out += at.Format(".000000000")
	}
	if slices.Contains(s, azureZone) {
		out += "+00:00"
	}
	return out
}

var azureTarget = target{
	holds: []string{"prompt_tokens", "output_tokens"},
	open: func(x *export) error {
		if err := x.needDates(); err != nil {
			return err
		}
		columns := azureColumns
		if x.native && hasStyle(x.header, azureImages) {
			columns = azureImageColumns
		}
		return x.put([]byte(strings.Join(columns, ",")))
	},
	write: func(x *export, row *traceformat.Row) error {
		in, err := x.tokens("ContextTokens", "prompt_tokens", row.PromptTokens)
		if err != nil {
			return err
		}
		out, err := x.tokens("GeneratedTokens", "output_tokens", row.OutputTokens)
		if err != nil {
			return err
		}
		at := x.date(row)
		b := append(x.line[:0], x.azureTime(at)...)
		if x.native && hasStyle(x.header, azureImages) {
			b = append(b, ',')
			b = append(b, rawText(x.fields["NumImages"])...)
		}
		b = append(append(b, ','), in...)
		b = append(append(b, ','), out...)
		x.line = b
		return x.put(b)
	},
}

// azureTime writes a time in the source's style, and in that of 2023 for traces
// from elsewhere: it says 100 ns.
func (x *export) azureTime(ns int64) string {
	if raw, ok := x.fields["TIMESTAMP"]; ok {
		text := rawText(raw)
		if got, err := parseAzureTime(text); err == nil && got == ns {
			return text
		}
	}
	s := style(strings.Split(x.header.Extra[sourceStyle], ","))
	if !x.native {
		s = style{azureDigits7}
		if ns%100 != 0 {
			ns -= ns % 100
			x.lose("arrival_ns", "cut to 100 ns")
		}
	}
	return formatAzureTime(ns, s)
}
