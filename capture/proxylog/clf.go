package proxylog

import (
	"bytes"
	"errors"
	"time"

	"reprise/capture"
)

// nginxCombinedDialect is the format that nginx and Apache write by default. It
// has the second in which a request ended, and no duration.
var nginxCombinedDialect = &Dialect{
	Name: "nginx-combined", Title: "nginx or Apache, combined", Vantage: "proxy",
	Detect: func(s *Sample) int {
		return s.share(func(b []byte) bool {
			var c combined
			return c.parse(b) == nil && c.tail == nil
		}) * 8 / 10
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		n := &combinedParser{assembler: newAssembler(o, "", "")}
		n.cap = Capability{
			Arrival: time.Second, ArrivalFrom: "end", TTFT: "no", Client: true, Status: true,
			Notes: []string{
				"the combined format has whole seconds and no durations: arrivals are those of the END of requests, late by as long as each took; log $msec, $request_time and $request_completion instead",
			},
		}
		if !o.ArrivalsAreEnd {
			return nil, &NeedError{"the combined format has the second in which a request ended and not how long it took, so that a long stream would seem to arrive when it is over", "--arrivals-are-end to take that for the arrival, or better a log_format with $msec and $request_time"}
		}
		return n, nil
	},
}

type combinedParser struct {
	assembler
	line combined
	rec  record
	out  capture.Logged
	cap  Capability
}

func (n *combinedParser) Capability() Capability { return n.cap }
func (n *combinedParser) Flush(*Emitter)         {}

func (n *combinedParser) Parse(line []byte, e *Emitter) error {
	n.rec.reset()
	if err := n.line.parse(line); err != nil {
		return err
	}
	n.line.put(&n.rec, fieldEnd)
	return n.emit(&n.rec, &n.out, e)
}

// combined is a line of the Common Log Format or of one that begins like it:
// host ident user [time] "request" status bytes "referer" "agent" tail.
type combined struct {
	host, user, time, request, status []byte
	tail                              []byte
}

var errCLF = errors.New("is no line of the common log format")

func (c *combined) parse(b []byte) error {
	*c = combined{}
	var ok bool
	if c.host, b, ok = bytes.Cut(b, []byte(" ")); !ok || len(c.host) == 0 {
		return errCLF
	}
	if _, b, ok = bytes.Cut(b, []byte(" ")); !ok {
		return errCLF
	}
	if c.user, b, ok = bytes.Cut(b, []byte(" [")); !ok {
		return errCLF
	}
	if c.time, b, ok = bytes.Cut(b, []byte("] \"")); !ok {
		return errCLF
	}
	if _, ok := parseCLF(c.time); !ok {
		return errCLF
	}
	if c.request, b, ok = quotedText(b); !ok || len(b) < 4 {
		return errCLF
	}
	if c.status, b, _ = bytes.Cut(b[1:], []byte(" ")); len(c.status) == 0 {
		return errCLF
	}
	if _, ok := atoi(c.status); !ok && string(c.status) != "-" {
		return errCLF
	}
	_, b, _ = bytes.Cut(b, []byte(" ")) // bytes
	for range 2 {                       // referer, agent
		if len(b) == 0 || b[0] != '"' {
			break
		}
		if _, b, ok = quotedText(b[1:]); !ok {
			return errCLF
		}
		b = bytes.TrimPrefix(b, []byte(" "))
	}
	if len(b) > 0 {
		c.tail = b
	}
	return nil
}

// quotedText returns what stands before the next quote that no backslash
// escapes, and what follows it.
func quotedText(b []byte) (text, rest []byte, ok bool) {
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return b[:i], b[i+1:], true
		}
	}
	return nil, nil, false
}

var (
	clfStart   = &binding{field: fieldStart, unit: unitCLF}
	clfEnd     = &binding{field: fieldEnd, unit: unitCLF}
	clfClient  = &binding{field: fieldClient}
	clfUser    = &binding{field: fieldUser}
	clfRequest = &binding{field: fieldRequestLine}
	clfStatus  = &binding{field: fieldStatus}
)

// put fills a record; the time is that of the start or of the end.
func (c *combined) put(r *record, at field) {
	when := clfEnd
	if at == fieldStart {
		when = clfStart
	}
	r.put(when, c.time, false)
	r.put(clfClient, c.host, false)
	r.put(clfUser, c.user, false)
	r.put(clfRequest, c.request, false)
	r.put(clfStatus, c.status, false)
}
