package proxy

import (
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// A pump sends a request body that did not come at once, beside the goroutine
// that reads the answer: a server may answer before it has read everything.
type pump struct {
	x      *exchange
	to     *upstreamConn
	gate   chan struct{} // closed when the body may be read, nil if at once
	stop   atomic.Bool
	done   chan struct{}
	opened bool // gate is closed; the handler's

	// Set when done is closed.
	complete bool  // all of the body was sent
	readErr  error // the client's side failed
}

// continueAfter is how long a client that expects 100 (Continue) waits for an
// upstream that says nothing (RFC 9110, section 10.1.1 leaves the time open;
// curl waits as long).
const continueAfter = time.Second

// chunkPrefix holds the size of a chunk and its line end.
const chunkPrefix = 10

func (u *pump) run() {
	defer close(u.done)
	r := u.x.r
	if u.gate != nil {
		timer := time.NewTimer(continueAfter)
		select {
		case <-u.gate:
		case <-timer.C:
		}
		timer.Stop()
	}
	buf := getBuffer(true)
	defer buf.put()
	// The size of a chunk goes in front of the data, its end behind it: one
	// write a chunk.
	data := buf.b[chunkPrefix : len(buf.b)-2]
	for !u.stop.Load() {
		n, err := r.Body.Read(data)
		now := u.x.p.clock.now()
		if n > 0 {
			if u.stop.Load() {
				return
			}
			out := data[:n]
			if r.ContentLength < 0 {
				out = frame(buf.b, n)
			}
			if _, werr := u.to.Write(out); werr != nil {
				return // the answer may say why
			}
			u.x.tap.requestBody(now, data[:n])
		}
		if err == io.EOF {
			if r.ContentLength < 0 {
				if _, werr := u.to.Write(appendTrailer(nil, r)); werr != nil {
					return
				}
			}
			u.x.requestEnd(now)
			u.complete = true
			return
		}
		if err != nil {
			if !u.stop.Load() {
				u.readErr = err
				u.to.Close() // the upstream must not take half a body for all of it
			}
			return
		}
	}
}

// frame makes buf[chunkPrefix:chunkPrefix+n] a chunk and returns it.
func frame(buf []byte, n int) []byte {
	var size [chunkPrefix]byte
	s := strconv.AppendUint(size[:0], uint64(n), 16)
	s = append(s, '\r', '\n')
	at := chunkPrefix - len(s)
	copy(buf[at:], s)
	buf[chunkPrefix+n], buf[chunkPrefix+n+1] = '\r', '\n'
	return buf[at : chunkPrefix+n+2]
}

// appendTrailer appends the last chunk and the trailer of r.
func appendTrailer(b []byte, r *http.Request) []byte {
	b = append(b, "0\r\n"...)
	for name, values := range r.Trailer {
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	return append(b, '\r', '\n')
}
