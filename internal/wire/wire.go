// Package wire sends HTTP requests to one server and stamps what comes back.
//
// A [Client] is driven by events instead of blocking calls, so that one thread
// can carry thousands of streams. Two implementations stand behind it: net/http
// (TLS, proxies, HTTP/2), and a raw HTTP/1.1 reader for plain TCP.
//
// All times are readings of [reprise/internal/clock.Now].
package wire

import (
	"errors"
	"time"
)

// A Request is one HTTP request, encoded before its time so that nothing is
// allocated or formatted at the moment of sending.
type Request struct {
	Method string
	Path   string  // with leading slash, query included
	Header []Field // beyond Host, Content-Length and Content-Type: application/json
	Body   []byte  // not written to; must stay unchanged until the sink is closed
}

// A Field is one header line.
type Field struct{ Name, Value string }

// A Head is the head of an answer.
type Head struct {
	Status      int
	ContentType string
	RequestID   string // X-Request-Id, where the server gives one
	RetryAfter  string
}

// A Sink is told what happens to a Request, in the order below, by one
// goroutine at a time. It must not block: its caller carries other streams.
type Sink interface {
	// Conn reports the connection that carries the request.
	Conn(at time.Duration, reused bool)
	// Sent reports the moment just before the first byte went to the kernel,
	// and the moment after the last.
	Sent(first, last time.Duration)
	// Head reports the final head (1xx answers are skipped).
	Head(at time.Duration, h Head)
	// Data delivers body bytes, transfer coding removed, stamped when they were
	// read. b is the caller's memory again when Data returns.
	Data(at time.Duration, b []byte)
	// Close ends the exchange: exactly once, and the last call. err is nil
	// after a complete answer, [ErrAborted] after Abort.
	Close(at time.Duration, err error)
}

// A Client sends requests to one server.
type Client interface {
	// Warm opens n connections and reports the first failure.
	Warm(n int) error
	// Start sends req and returns at once; everything else is told to sink,
	// from another goroutine.
	Start(req *Request, sink Sink) Call
	// Close abandons what is in flight (the sinks are closed with ErrAborted)
	// and returns when no goroutine or connection is left.
	Close()
}

// A Call is a request in flight.
type Call interface {
	// Abort hangs up. It may be called at any time, also after the end, from
	// any goroutine.
	Abort()
}

// What Close can report besides a network error.
var (
	ErrAborted   = errors.New("aborted by the client")
	ErrTruncated = errors.New("the answer ended early") // connection closed inside a body
	ErrProtocol  = errors.New("malformed HTTP answer")
)
