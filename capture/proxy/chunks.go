package proxy

import (
	"bufio"
	"bytes"
)

// A lookahead tells how many bytes of a chunked body can be read without
// waiting. net/http's reader of chunks fills the buffer it is given as long as
// a chunk goes on, and waits for the network meanwhile; so it must be given no
// more than what is there. What the lookahead believes decides about the size
// of a read alone: net/http still decides what the bytes mean.
type lookahead struct {
	left int64 // bytes that are still to come of the current chunk
	tail bool  // its line end as well
}

// step moves over one piece of b: data, or what stands between data. It returns
// the length of the piece and how much of it is data, and 0 where b has no
// whole piece; last is that the end of the body is in b.
func (l *lookahead) step(b []byte) (n, data int, last bool) {
	if l.left > 0 {
		n = int(min(l.left, int64(len(b))))
		l.left -= int64(n)
		l.tail = l.left == 0
		return n, n, false
	}
	if l.tail {
		if len(b) < 2 {
			return 0, 0, false
		}
		l.tail = false
		return 2, 0, false
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return 0, 0, false
	}
	size := hexSize(b[:end])
	if size == 0 {
		// Only an empty trailer can be told to be complete at a glance.
		return 0, 0, bytes.HasPrefix(b[end+1:], []byte("\r\n"))
	}
	l.left = size
	return end + 1, 0, false
}

// hexSize is the number that a line begins with.
func hexSize(line []byte) (size int64) {
	for _, c := range line {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return size
		}
		if size > 1<<50 {
			return size
		}
		size = size<<4 | int64(c)
	}
	return size
}

// ready returns how large a read of the body may be so that it does not wait
// once it has data, at most most. It waits until there is data, the end, or an error
// for the body to report.
func (l *lookahead) ready(br *bufio.Reader, most int) int {
	for {
		_, err := br.Peek(1)
		b, _ := br.Peek(br.Buffered()) // what is there is no error
		look, total := *l, 0
		for len(b) > 0 {
			n, data, last := look.step(b)
			if last {
				return most
			}
			if n == 0 {
				break
			}
			total += data
			b = b[n:]
		}
		if total > 0 {
			return min(total, most)
		}
		if err != nil || br.Buffered() >= br.Size() {
			return 1
		}
		// The size of a chunk is not all there: nothing can be passed on.
		if _, err := br.Peek(br.Buffered() + 1); err != nil {
			return 1
		}
	}
}

// passed moves over what a read has taken out of b, the buffer's content before.
func (l *lookahead) passed(b []byte) {
	for len(b) > 0 {
		n, _, _ := l.step(b)
		if n == 0 {
			return
		}
		b = b[n:]
	}
}
