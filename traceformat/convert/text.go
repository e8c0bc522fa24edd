package convert

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"reprise/traceformat"
)

// maxLine bounds one line of a text format. A million block ids take 8 MiB; a
// longer line is damage, or not the format that it was taken for.
const maxLine = 16 << 20

// utf8BOM begins some CSV files that a spreadsheet wrote. It is skipped.
var utf8BOM = []byte("\xef\xbb\xbf")

// Words of the style of any text file.
const (
	crlf           = "crlf"             // lines end as on Windows
	noFinalNewline = "no-final-newline" // the last line has no end
)

// lines reads the lines of a text file and knows where it is.
type lines struct {
	r    *bufio.Reader
	name string
	line int64 // number of the current line, from 1
	rows int64 // rows that were made of earlier lines
	buf  []byte
	// style collects what the file's lines look like: "crlf" from the first
	// line, "no-final-newline" from the last.
	style style
	cut   bool // the current line ended with the file
}

func newLines(r io.Reader, name string) *lines {
	return &lines{r: bufio.NewReaderSize(r, 64<<10), name: name}
}

// next returns the next line that is not blank, without its end. It is valid
// until the call after. The error is io.EOF or located.
func (l *lines) next() ([]byte, error) {
	for {
		b, err := l.read()
		if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(b)) == 0 {
			continue
		}
		if bytes.IndexByte(b, 0) >= 0 {
			return nil, l.errorf("NUL byte in the line: the file is damaged or is not text")
		}
		if !utf8.Valid(b) {
			return nil, l.errorf("the line is not UTF-8")
		}
		return b, nil
	}
}

func (l *lines) read() ([]byte, error) {
	l.buf = l.buf[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		if len(l.buf)+len(part) > maxLine {
			l.line++
			return nil, l.errorf("line is longer than %d MiB", maxLine>>20)
		}
		l.buf = append(l.buf, part...)
		switch {
		case err == nil:
			l.line++
			b := l.buf[:len(l.buf)-1]
			if n := len(b); n > 0 && b[n-1] == '\r' {
				b = b[:n-1]
				if l.line == 1 {
					l.style.add(crlf)
				}
			}
			if l.line == 1 {
				b = bytes.TrimPrefix(b, utf8BOM)
			}
			return b, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			if len(l.buf) == 0 {
				return nil, io.EOF
			}
			l.line++
			l.cut = true
			l.style.add(noFinalNewline)
			if l.line == 1 {
				return bytes.TrimPrefix(l.buf, utf8BOM), nil
			}
			return l.buf, nil
		default:
			l.line++
			return nil, l.wrap(err)
		}
	}
}

// errorf locates an error at the current line.
func (l *lines) errorf(format string, args ...any) error {
	return l.wrap(fmt.Errorf(format, args...))
}

func (l *lines) wrap(err error) error {
	return &traceformat.RowError{Name: l.name, Row: l.rows, Line: l.line, Err: err}
}

// broken is errorf for a line that is not what its format asks for: where the
// line was ended by the file, it was cut.
func (l *lines) broken(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if l.cut {
		err = fmt.Errorf("%w: %w", traceformat.ErrTruncated, err)
	}
	return l.wrap(err)
}

// splitCSV appends the fields of one line to dst. Fields in quotes may hold
// commas and doubled quotes, not line ends.
func splitCSV(dst [][]byte, line []byte) ([][]byte, error) {
	for {
		if len(line) > 0 && line[0] == '"' {
			var field []byte
			rest := line[1:]
			for {
				i := bytes.IndexByte(rest, '"')
				if i < 0 {
					return nil, errors.New("quote is not closed in this line")
				}
				field = append(field, rest[:i]...)
				rest = rest[i+1:]
				if len(rest) == 0 || rest[0] != '"' {
					break
				}
				field = append(field, '"')
				rest = rest[1:]
			}
			dst = append(dst, field)
			if len(rest) == 0 {
				return dst, nil
			}
			if rest[0] != ',' {
				return nil, errors.New("text follows a closing quote")
			}
			line = rest[1:]
			continue
		}
		i := bytes.IndexByte(line, ',')
		if i < 0 {
			return append(dst, line), nil
		}
		dst = append(dst, line[:i])
		line = line[i+1:]
	}
}

// appendCSV appends one field, in quotes where it needs them.
func appendCSV(dst []byte, field string) []byte {
	if !bytes.ContainsAny([]byte(field), "\",\r\n") {
		return append(dst, field...)
	}
	dst = append(dst, '"')
	for _, c := range []byte(field) {
		if c == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}

// csvTable is a CSV file whose first line names its columns.
type csvTable struct {
	*lines
	header []string
	fields [][]byte
}

// openCSV reads the header. known lists the headers that the format has; nil
// takes any.
func openCSV(r io.Reader, name string) (*csvTable, error) {
	t := &csvTable{lines: newLines(r, name)}
	line, err := t.lines.next()
	if err == io.EOF {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: traceformat.ErrEmpty}
	}
	if err != nil {
		return nil, err
	}
	fields, err := splitCSV(nil, line)
	if err != nil {
		return nil, t.broken("%w", err)
	}
	for _, f := range fields {
		t.header = append(t.header, string(f))
	}
	return t, nil
}

// next returns the fields of the next row.
func (t *csvTable) next() ([][]byte, error) {
	line, err := t.lines.next()
	if err != nil {
		return nil, err
	}
	t.fields, err = splitCSV(t.fields[:0], line)
	if err != nil {
		return nil, t.broken("%w", err)
	}
	if len(t.fields) != len(t.header) {
		return nil, t.broken("%d fields, want the %d of the header", len(t.fields), len(t.header))
	}
	return t.fields, nil
}

// csvHeader returns the fields of the first line of head, or nil.
func csvHeader(head []byte) []string {
	line, _, _ := bytes.Cut(bytes.TrimPrefix(head, utf8BOM), []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > 4096 {
		return nil // the headers of the formats are some 100 bytes long
	}
	fields, err := splitCSV(nil, line)
	if err != nil {
		return nil
	}
	var out []string
	for _, f := range fields {
		out = append(out, string(f))
	}
	return out
}
