package proxylog

import (
	"bytes"
	"errors"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// HAProxy's "option httplog":
//
//	client:port [accept date] frontend backend/server TR/Tw/Tc/Tr/Ta status bytes
//	captured cookies termination actconn/feconn/beconn/srv_conn/retries
//	srv_queue/backend_queue {captured headers} "request"
//
// The date is the first byte of the request (%tr), in local time without a zone,
// or in UTC with one (%trg). Until version 1.6 it was the moment of accept and the
// timers began with Tq, which holds the time that a connection was idle. Times
// are in ms; -1 is never, and a leading + says that the line was written before
// the end (logasap). Source: HAProxy's configuration manual, 8.2.3 and 8.4.
var haproxyDialect = &Dialect{
	Name: "haproxy", Title: "HAProxy, httplog", Vantage: "proxy",
	Detect: func(s *Sample) int {
		var h haproxyLine
		return s.share(func(b []byte) bool { return h.parse(b) == nil }) * 9 / 10
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		p := &haproxy{assembler: newAssembler(o, "", "")}
		p.cap = Capability{ArrivalFrom: "start", Arrival: time.Millisecond, TTFT: "no", Duration: true, Client: true, Aborts: true, Status: true}
		n, naive := 0, false
		var line haproxyLine
		for _, b := range s.Records {
			if line.parse(b) == nil {
				n++
				c, _ := parseCLF(line.date)
				naive = naive || !c.zoned
				if c.tick > p.cap.Arrival {
					p.cap.Arrival = c.tick
				}
			}
		}
		switch {
		case n == 0:
			return nil, errors.New("none of the first lines is of option httplog")
		case naive && o.Zone == nil:
			return nil, &NeedError{"HAProxy's times name no zone", "--tz ZONE, such as --tz UTC or --tz Europe/Berlin (or log with %trg)"}
		}
		if o.TrustHeaderTime {
			p.cap.TTFT = traceformat.TTFTHeader
		} else {
			p.cap.Notes = append(p.cap.Notes, "Tr is the time to the head of the answer, which is no TTFT; --trust-header-time takes it for one")
		}
		p.cap.Notes = append(p.cap.Notes, "HAProxy notices at the server's next event that a client has gone: the time of an abort is late by up to one token")
		return p, nil
	},
}

type haproxy struct {
	assembler
	line haproxyLine
	rec  record
	out  capture.Logged
	cap  Capability
}

func (p *haproxy) Capability() Capability { return p.cap }
func (p *haproxy) Flush(*Emitter)         {}

// A haproxyLine is a line, cut.
type haproxyLine struct {
	client, date []byte
	timers       [5][]byte
	status, term []byte
	retries      []byte
	request      []byte
}

var errHAProxy = errors.New("is no line of HAProxy's httplog")

func (h *haproxyLine) parse(b []byte) error {
	*h = haproxyLine{}
	// Whatever syslog puts in front ends before the client's address, which
	// stands before the date in brackets.
	i := bytes.Index(b, []byte(" ["))
	for ; i >= 0; i = nextDate(b, i) {
		if len(b) > i+22 && b[i+4] == '/' && b[i+8] == '/' {
			break
		}
	}
	if i < 0 {
		return errHAProxy
	}
	h.client = b[:i]
	if j := bytes.LastIndexByte(h.client, ' '); j >= 0 {
		h.client = h.client[j+1:]
	}
	if j := bytes.LastIndexByte(h.client, ':'); j >= 0 {
		h.client = h.client[:j]
	}
	b = b[i+2:]
	var ok bool
	if h.date, b, ok = bytes.Cut(b, []byte("] ")); !ok {
		return errHAProxy
	}
	if _, ok := parseCLF(h.date); !ok {
		return errHAProxy
	}
	var word []byte
	// take steps over n words, to the last of them.
	take := func(n int) bool {
		for range n {
			if word, b, ok = bytes.Cut(b, []byte(" ")); !ok || len(word) == 0 {
				return false
			}
		}
		return true
	}
	if !take(3) { // frontend, backend/server, timers
		return errHAProxy
	}
	n := 0
	for part := range bytes.SplitSeq(word, []byte("/")) {
		if n == len(h.timers) {
			return errHAProxy
		}
		if _, ok := fixed(part, 0); !ok {
			return errHAProxy
		}
		h.timers[n] = part
		n++
	}
	if n != 5 || !take(1) {
		return errHAProxy
	}
	h.status = word
	if !take(4) || len(word) != 4 { // bytes, two cookies
		return errHAProxy
	}
	h.term = word
	if !take(1) {
		return errHAProxy
	}
	h.retries = bytes.TrimPrefix(word[bytes.LastIndexByte(word, '/')+1:], []byte("+"))
	if _, after, ok0 := bytes.Cut(b, []byte{'"'}); ok0 {
		if text, _, ok := quotedText(after); ok {
			h.request = text
		} else {
			h.request = after // cut by the length of a syslog line
		}
	}
	return nil
}

// nextDate finds the next " [" behind i.
func nextDate(b []byte, i int) int {
	j := bytes.Index(b[i+2:], []byte(" ["))
	if j < 0 {
		return -1
	}
	return i + 2 + j
}

var (
	haproxyClient  = &binding{field: fieldClient}
	haproxyTotal   = &binding{field: fieldDuration, unit: unitMilli}
	haproxyHeader  = &binding{field: fieldHeaderTime, unit: unitMilli}
	haproxyTerm    = &binding{field: fieldTermination}
	haproxyRetries = &binding{field: fieldRetries}
)

func (p *haproxy) Parse(b []byte, e *Emitter) error {
	if err := p.line.parse(b); err != nil {
		return haproxyOther(b, e, err)
	}
	h, r := &p.line, &p.rec
	r.reset()
	if len(h.request) == 0 || h.request[0] == '<' { // "<BADREQ>"
		e.Drop(capture.ReasonNotLLM, 1)
		return nil
	}
	r.put(clfStart, h.date, false)
	r.put(haproxyClient, h.client, false)
	r.put(clfStatus, h.status, false)
	r.put(haproxyTerm, h.term, false)
	r.put(haproxyRetries, h.retries, false)
	r.put(clfRequest, h.request, false)
	r.put(haproxyTotal, bytes.TrimPrefix(h.timers[4], []byte("+")), false)
	// The head came after the request's head was read, queue, connect and answer.
	// -1 anywhere means that it never came.
	sum, all := int64(0), true
	for _, t := range h.timers[:4] {
		ms, ok := fixed(bytes.TrimPrefix(t, []byte("+")), 0)
		if !ok || ms < 0 {
			all = false
			break
		}
		sum += ms
	}
	if all {
		var buf [20]byte
		r.put(haproxyHeader, appendInt(buf[:0], sum), false)
	}
	return p.emit(r, &p.out, e)
}

func appendInt(b []byte, v int64) []byte {
	if v >= 10 {
		b = appendInt(b, v/10)
	}
	return append(b, byte('0'+v%10))
}

// haproxyOther accounts for lines that HAProxy writes besides those of requests.
func haproxyOther(b []byte, e *Emitter, err error) error {
	for _, word := range []string{"Proxy ", "Server ", "Connect from ", "backend ", "SSL handshake failure", "Health check", "frontend "} {
		if bytes.Contains(b, []byte(": "+word)) || bytes.Contains(b, []byte(" "+word)) && !bytes.ContainsRune(b, '"') {
			e.Drop(reasonNotRequest, 1)
			return nil
		}
	}
	return err
}

// reasonNotRequest counts records of a log that are of something else.
const reasonNotRequest = "not_a_request"

// haproxyEnding reads the first two letters of a termination state: who ended
// the session, and when.
func haproxyEnding(term []byte, row *traceformat.Row) {
	if len(term) < 2 {
		return
	}
	switch term[0] {
	case 'C':
		row.Result, row.Error = traceformat.ResultClientAbort, ""
	case 'c': // the client neither sent nor read for as long as is allowed
		row.Result, row.Error = traceformat.ResultTimeout, "client_timeout"
	case 's':
		row.Result, row.Error = traceformat.ResultTimeout, "server_timeout"
		if term[1] == 'Q' {
			row.Error = "queue_timeout"
		}
	case 'S':
		row.Result, row.Error = traceformat.ResultServerError, "server_abort"
		if term[1] == 'C' {
			row.Error = "connect_refused"
		}
	case 'P':
		row.Result, row.Error = traceformat.ResultRejected, "proxy_denied"
		if term[1] == 'H' {
			row.Result, row.Error = traceformat.ResultServerError, "bad_response"
		}
	case 'R', 'I':
		row.Result, row.Error = traceformat.ResultServerError, "proxy_resources"
	case 'D', 'U', 'K':
		row.Result, row.Error = traceformat.ResultServerError, "server_down"
	}
}
