package proxylog

import (
	"bytes"
	"errors"
	"io"
)

const (
	// maxRecord bounds one record. Gateways that log prompts write lines of
	// megabytes; more is damage, or no log.
	maxRecord = 32 << 20
	readSize  = 256 << 10
)

// A frame is how records are told apart.
type frame uint8

const (
	lineFrame frame = iota // one a line
	jsonFrame              // JSON objects, over any number of lines, in arrays or not
	csvFrame               // CSV, whose fields in quotes may hold line ends
)

var (
	errTooLong = errors.New("is longer than 32 MiB")
	errBetween = errors.New("stands between JSON objects")
)

// A framer cuts an input into records. It holds one record, whatever the input.
type framer struct {
	src    io.Reader
	kind   frame
	follow bool // the end of src is not the end of the input

	buf     []byte
	r, w    int
	scanned int // bytes behind r that hold no end of a line
	need    int // bytes to have before a record that spans lines is looked for again
	eof     bool
	skip    bool // in a record that was too long
}

// next returns the next record that is not blank, valid until the call after.
// After errTooLong and errBetween it goes on. io.EOF is the end or, when
// following, the end of what has been written: later calls find what was added.
func (f *framer) next() ([]byte, error) {
	for {
		if f.w-f.r >= f.need && f.r < f.w || f.eof {
			rec, n, err := f.cut()
			f.need = 0
			if n > 0 {
				f.r += n
				f.scanned = 0
				switch {
				case f.skip:
					f.skip = false
					continue
				case err != nil:
					return nil, err
				case len(bytes.TrimSpace(rec)) == 0:
					continue
				}
				return rec, nil
			}
		}
		if f.eof && !f.follow {
			return nil, io.EOF
		}
		if f.w-f.r >= maxRecord {
			tooLong := !f.skip
			f.skip, f.r, f.w, f.scanned = f.kind == lineFrame, 0, 0, 0
			if tooLong {
				return nil, errTooLong
			}
		}
		if f.kind != lineFrame && f.need == 0 {
			f.need = min(2*(f.w-f.r), maxRecord)
		}
		if err := f.fill(); err == io.EOF {
			if f.eof = true; f.follow {
				return nil, io.EOF
			}
		} else if err != nil {
			return nil, err
		}
	}
}

// fill reads more.
func (f *framer) fill() error {
	if f.r > 0 && (f.r == f.w || len(f.buf)-f.w < readSize/2) {
		copy(f.buf, f.buf[f.r:f.w])
		f.w -= f.r
		f.r = 0
	}
	if len(f.buf)-f.w < readSize/2 {
		grown := make([]byte, max(readSize, 2*len(f.buf)))
		copy(grown, f.buf[:f.w])
		f.buf = grown
	}
	for range 100 {
		n, err := f.src.Read(f.buf[f.w:])
		f.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// cut returns the record at the front and how long it is with what ends it; 0 if
// its end is not there yet.
func (f *framer) cut() (rec []byte, n int, err error) {
	b := f.buf[f.r:f.w]
	last := f.eof && !f.follow
	switch f.kind {
	case jsonFrame:
		return cutJSON(b, last)
	case csvFrame:
		return cutCSV(b, last)
	}
	if i := bytes.IndexByte(b[f.scanned:], '\n'); i >= 0 {
		return bytes.TrimSuffix(b[:f.scanned+i], []byte("\r")), f.scanned + i + 1, nil
	}
	f.scanned = len(b)
	if last && len(b) > 0 {
		return b, len(b), nil
	}
	return nil, 0, nil
}

// cutJSON finds the next object and passes over what lies between objects of an
// array. What belongs in neither place goes up to the end of its line.
func cutJSON(b []byte, last bool) (rec []byte, n int, err error) {
	i := 0
	for i < len(b) && (b[i] <= ' ' || b[i] == ',' || b[i] == '[' || b[i] == ']') {
		i++
	}
	if i == len(b) {
		return nil, len(b), nil
	}
	if b[i] != '{' {
		if j := bytes.IndexByte(b[i:], '\n'); j >= 0 {
			return nil, i + j + 1, errBetween
		}
		if last {
			return nil, len(b), errBetween
		}
		return nil, 0, nil
	}
	depth, text := 0, false
	for j := i; j < len(b); j++ {
		switch c := b[j]; {
		case text:
			if c == '\\' {
				j++
			} else if c == '"' {
				text = false
			}
		case c == '"':
			text = true
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				return b[i : j+1], j + 1, nil
			}
		}
	}
	if last {
		return b[i:], len(b), nil
	}
	return nil, 0, nil
}

// cutCSV finds the end of a row: a line end outside of quotes.
func cutCSV(b []byte, last bool) (rec []byte, n int, err error) {
	quoted := false
	for i, c := range b {
		switch c {
		case '"':
			quoted = !quoted // a doubled quote toggles twice
		case '\n':
			if !quoted {
				return bytes.TrimSuffix(b[:i], []byte("\r")), i + 1, nil
			}
		}
	}
	if last && len(b) > 0 {
		return bytes.TrimSuffix(b, []byte("\r")), len(b), nil
	}
	return nil, 0, nil
}

var errQuote = errors.New("has a quote that is not closed, or text behind one that is")

// splitCSV appends the fields of a row to dst. What had to be put together is
// put into scratch, whose new state it returns.
func splitCSV(dst [][]byte, row, scratch []byte, comma byte) (_ [][]byte, _ []byte, err error) {
	for {
		if len(row) > 0 && row[0] == '"' {
			start := len(scratch)
			row = row[1:]
			for {
				i := bytes.IndexByte(row, '"')
				if i < 0 {
					return dst, scratch, errQuote
				}
				scratch = append(scratch, row[:i]...)
				row = row[i+1:]
				if len(row) == 0 || row[0] != '"' {
					break
				}
				scratch = append(scratch, '"')
				row = row[1:]
			}
			dst = append(dst, scratch[start:len(scratch):len(scratch)])
			if len(row) == 0 {
				return dst, scratch, nil
			}
			if row[0] != comma {
				return dst, scratch, errQuote
			}
			row = row[1:]
			continue
		}
		i := bytes.IndexByte(row, comma)
		if i < 0 {
			return append(dst, row), scratch, nil
		}
		dst = append(dst, row[:i])
		row = row[i+1:]
	}
}
