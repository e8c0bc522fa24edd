// Package wirehttp reads HTTP/1.1 and HTTP/2 out of the byte streams of captured
// connections and turns every request with its answer into a
// [capture.Exchange].
//
// It is not a server's parser: nothing is refused, what cannot be read is
// counted and left out, and reading goes on where it is sure again. Bodies are
// handed on as they come and never held. A request is only ever paired with an
// answer that is certainly its own: where packets are missing, offsets and
// acknowledgements of TCP decide, and when they do not, the answer is dropped.
//
// A client that pipelines on a connection that is joined late is believed once
// its requests and answers come out even (see trial). What no packet tells is a
// client that has kept exactly one request ahead of the answers since before the
// join, in step: it looks like one that does not pipeline, one answer off.
package wirehttp

import (
	"net/netip"

	"reprise/capture"
	"reprise/capture/packet/reassembly"
)

// An Exchange takes one request and its answer; see [capture.Exchange], which is
// one. After ResponseEnd or End further calls do nothing.
type Exchange interface {
	RequestHead(t int64, method, target string, h capture.Header)
	RequestBody(t int64, p []byte)
	RequestEnd(t int64)
	ResponseHead(t int64, status int, h capture.Header)
	ResponseBody(t int64, p []byte)
	ResponseEnd(t int64)
	End(t int64, how capture.Ending)
	Mispaired(t int64)
	Gap(t int64, response bool, n int64)
}

// A Recorder opens exchanges.
type Recorder interface {
	Begin(t int64, c capture.Conn) Exchange
	Drop(reason string)
}

// Reasons, beside those of package capture, for which an exchange is not
// recorded.
const (
	// ReasonNoRequest counts answers whose request was not captured, or may not
	// be the one before them.
	ReasonNoRequest = "response_without_request"
	// ReasonPipeline counts requests beyond the bound on unanswered ones.
	ReasonPipeline = "too_many_unanswered"
)

// Counters say what became of connections and their bytes.
type Counters struct {
	HTTP1       int64 `json:"http1_connections"`
	HTTP2       int64 `json:"http2_connections"`
	TLS         int64 `json:"tls_connections"`      // encrypted: nothing to read
	NotHTTP     int64 `json:"not_http_connections"` // another protocol, or nothing recognised
	Resyncs     int64 `json:"resyncs"`              // found the next message after a loss
	LostBytes   int64 `json:"lost_bytes"`           // passed over while looking for one
	BadMessages int64 `json:"bad_messages"`         // heads, chunks or frames that cannot be read
	LateHTTP2   int64 `json:"http2_late_joins"`
	LostHPACK   int64 `json:"hpack_lost"` // times a header table became unknown
}

// An Env is what all connections share. It is used by one goroutine.
type Env struct {
	Counters
	Recorder Recorder
	Budget   *reassembly.Budget
	// ServerPorts are the ports that servers listen on, where that is known.
	ServerPorts map[uint16]bool

	fields fields // scratch
	header capture.Header
}

// NewEnv returns an Env.
func NewEnv(r Recorder, b *reassembly.Budget) *Env {
	e := &Env{Recorder: r, Budget: b}
	e.header = e.fields.get
	return e
}

// Begin returns the handler of a new connection.
func (e *Env) Begin(c *reassembly.Conn) reassembly.Handler {
	f := &Flow{env: e, late: c.LateJoin(), ends: [2]*reassembly.Endpoint{c.From(0), c.From(1)}}
	switch a, b := e.ServerPorts[c.Key.A.Port], e.ServerPorts[c.Key.B.Port]; {
	case c.ClientKnown:
		f.client = c.Client
	case a != b && a:
		f.client = 1
	case a != b:
		f.client = 0
	default:
		f.client = 1 // ports sort the keys, and servers have the lower ones
	}
	return f
}

// field is one header field; its bytes are borrowed.
type field struct{ name, value []byte }

// fields answers a [capture.Header] for the head that was read last.
type fields struct{ list []field }

func (f *fields) get(name string) string {
	for i := range f.list {
		if equalFold(f.list[i].name, name) {
			return string(f.list[i].value)
		}
	}
	return ""
}

// equalFold compares a header name with one in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// clientName is the address that stands for the client. It is only ever hashed.
func (f *Flow) clientName() string {
	if f.name == "" {
		f.name = netip.AddrFrom16(f.ends[f.client].Addr).Unmap().String()
	}
	return f.name
}
