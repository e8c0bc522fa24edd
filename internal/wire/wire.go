// Package wire sends HTTP requests to one server and stamps what comes back.
//
// A [Client] is driven by events instead of blocking calls, so that one thread
// can carry thousands of streams. Two implementations stand behind it: net/http
// ([NewStd]: TLS, proxies, HTTP/2), and a hand-written HTTP/1.1 over one epoll
// loop ([NewRaw]: Linux, plain TCP). [New] chooses.
//
// All times are readings of [reprise/internal/clock.Now].
//
// # Promises
//
// Nothing is sent twice unless [Options.RetryStale] asks for it, redirects are
// reported and not followed, and no transfer is decompressed. A connection that
// said anything beyond its answer carries no other request, so that no answer
// is taken for another's. Close leaves no goroutine and no descriptor behind.
package wire

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"reprise/internal/clock"
)

// A Request is one HTTP request, encoded before its time so that nothing is
// allocated or formatted at the moment of sending. It must not be copied or
// changed between Start and the Close of its sink; after that it may be started
// again, and calls of its earlier starts then refer to the new one.
type Request struct {
	Method string
	Path   string  // with leading slash, query included
	Header []Field // beyond Host, Content-Length and, with a body, Content-Type: application/json
	Body   []byte  // not written to; must stay unchanged until the sink is closed

	Idle  time.Duration // longest time without a byte sent or received, from Start on; 0: any
	Total time.Duration // longest time from Start to the end of the answer; 0: any

	// flight is the raw client's record of the request, placed here so that
	// starting one allocates nothing.
	flight flight
}

// A Field is one header line.
type Field struct{ Name, Value string }

// check refuses what would not stay one request on the wire.
func (r *Request) check() error {
	for i := range len(r.Method) {
		if !isToken[r.Method[i]] {
			return fmt.Errorf("request method %q is no word", r.Method)
		}
	}
	if r.Path == "" || r.Path[0] != '/' {
		return fmt.Errorf("request path %q: want a path that starts with a slash", r.Path)
	}
	for i := range len(r.Path) {
		if c := r.Path[i]; c <= ' ' || c == 0x7f {
			return fmt.Errorf("request path %q holds byte %#x: escape it", r.Path, c)
		}
	}
	for i := range r.Header {
		f := &r.Header[i]
		if f.Name == "" {
			return errors.New("a request header has no name")
		}
		for j := range len(f.Name) {
			if !isToken[f.Name[j]] {
				return fmt.Errorf("request header %q is no word", f.Name)
			}
		}
		for j := range len(f.Value) {
			if c := f.Value[j]; c < ' ' && c != '\t' || c == 0x7f {
				return fmt.Errorf("request header %s holds byte %#x", f.Name, c)
			}
		}
	}
	return nil
}

// A Head is the head of an answer.
type Head struct {
	Status          int
	ContentType     string
	ContentEncoding string // empty unless the body is compressed: then Close reports ErrEncoding
	RequestID       string // X-Request-Id, where the server gives one
	RetryAfter      string
}

// A Sink is told what happens to a Request, in the order below, by one
// goroutine at a time. It must not block: its caller carries other streams.
// With [Options.RetryStale], Conn and Sent come again for the second attempt.
type Sink interface {
	// Conn reports the connection that carries the request: reused if it was
	// open before Start.
	Conn(at time.Duration, reused bool)
	// Sent reports the moment just before the first byte went to the kernel,
	// and the moment after the last. last is 0 if the answer began before the
	// request was written out; it can be a little after the stamp of the head,
	// since a quick server answers while the writing thread returns.
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
	// Warm opens n connections, which requests started later will use, and
	// reports the first failure. The raw client opens others in their place
	// when a server closes them for being idle, as many do after seconds, so
	// that they are there for the burst they were opened for.
	Warm(n int) error
	// Spare begins to open n connections more and returns at once. Unlike those
	// of Warm they are not replaced when the server closes them. Net/http opens
	// none.
	Spare(n int)
	// Start sends req and returns at once. It may call sink's Conn and Sent
	// itself, before it returns; all else is told from another goroutine.
	Start(req *Request, sink Sink) Call
	// Kind names the implementation, for the manifest of a run.
	Kind() string
	// Stats counts what the client did so far.
	Stats() Stats
	// Close abandons what is in flight (the sinks are closed with ErrAborted)
	// and returns when no goroutine or connection is left. It must not be
	// called from a Sink.
	Close()
}

// Kinds of clients, as Kind reports them.
const (
	KindRaw = "raw-http1-epoll"
	KindStd = "net/http"
)

// A Call is a request in flight.
type Call interface {
	// Abort hangs up. It may be called at any time, also after the end, from
	// any goroutine.
	Abort()
}

// Stats are counts since a client was made.
type Stats struct {
	Dialed   int64 `json:"dialed"`   // connections opened
	Reopened int64 `json:"reopened"` // of these, in place of idle ones that the server closed
	Stale    int64 `json:"stale"`    // requests that met a connection the server had closed
	Resent   int64 `json:"resent"`   // requests sent a second time, see Options.RetryStale
	Idle     int64 `json:"-"`        // connections open now that carry no request; -1: not known
}

// Options say how a client connects. The zero value is useful.
type Options struct {
	// MaxConns bounds the connections that are open at once; requests beyond it
	// wait. 0: no bound.
	MaxConns int
	// Connect bounds the opening of a connection, TLS included. 0: 30 s.
	Connect time.Duration
	// RetryStale sends a request once more, on another connection, when the
	// server closed a kept-alive one before any byte of the answer. Without it
	// such a request ends in ErrStale.
	RetryStale bool
	// Loops is the number of threads of the raw client; MaxConns is divided
	// among them. 0: 1.
	Loops int

	// For net/http.
	HTTP2 bool        // negotiate HTTP/2 over TLS
	TLS   *tls.Config // nil: the defaults
	Proxy *url.URL    // nil: what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say
}

// What Close can report besides a network error.
var (
	ErrAborted   = errors.New("aborted by the client")
	ErrTruncated = errors.New("the connection was closed before the end of the answer")
	ErrProtocol  = errors.New("malformed HTTP answer")
	ErrStale     = errors.New("the server closed a kept-alive connection before it answered")
	ErrEncoding  = errors.New("the answer is compressed, which was not asked for")

	ErrConnectTimeout error = timeoutError("connecting took longer than allowed")
	ErrIdleTimeout    error = timeoutError("no byte was sent or received for longer than allowed")
	ErrTotalTimeout   error = timeoutError("the answer took longer than allowed")
)

// A timeoutError is an os.ErrDeadlineExceeded that says which deadline.
type timeoutError string

func (e timeoutError) Error() string        { return string(e) }
func (e timeoutError) Timeout() bool        { return true }
func (e timeoutError) Is(target error) bool { return target == os.ErrDeadlineExceeded }

const (
	defaultConnect = 30 * time.Second
	userAgent      = "reprise"
)

// New returns a client for the server at base: the raw one where it can carry
// the traffic (plain http, no proxy, Linux), net/http otherwise. A path in base
// is put before the path of every request.
func New(base string, o Options) (Client, error) {
	u, err := parseBase(base)
	if err != nil {
		return nil, err
	}
	if proxy, err := o.proxy(u); err != nil {
		return nil, err
	} else if u.Scheme == "http" && proxy == nil && haveRaw {
		return NewRaw(base, o)
	}
	return NewStd(base, o)
}

func (o *Options) proxy(u *url.URL) (*url.URL, error) {
	if o.Proxy != nil {
		return o.Proxy, nil
	}
	p, err := http.ProxyFromEnvironment(&http.Request{URL: u})
	if err != nil {
		return nil, fmt.Errorf("proxy from the environment: %w", err)
	}
	return p, nil
}

func (o *Options) connectTimeout() time.Duration {
	if o.Connect > 0 {
		return o.Connect
	}
	return defaultConnect
}

// parseBase checks the address of a server.
func parseBase(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%q is no server address: want http://host:port or https://host:port", base)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%q names no host: want http://host:port", base)
	case u.User != nil:
		return nil, fmt.Errorf("the address of %s holds credentials: give them as a header instead", u.Host)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%q has a query or fragment: want http://host:port", base)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// refusals closes sinks that never got as far as a connection, each from a
// goroutine of its own because Start must not. (A WaitGroup would not do: Start
// may come while Close waits.)
type refusals struct {
	mu    sync.Mutex
	n     int
	empty sync.Cond // L is &mu from the first use on
}

func (r *refusals) refuse(sink Sink, err error) {
	r.mu.Lock()
	r.n++
	r.mu.Unlock()
	go func() {
		sink.Close(clock.Now(), err)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.n--; r.n == 0 && r.empty.L != nil {
			r.empty.Broadcast()
		}
	}()
}

func (r *refusals) wait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.empty.L = &r.mu
	for r.n > 0 {
		r.empty.Wait()
	}
}
