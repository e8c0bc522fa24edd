package proxylog

import (
	"bytes"
	"time"

	"reprise/capture"
)

// Traefik's JSON. Times are those of the start; durations are in nanoseconds.
// Source: pkg/middlewares/accesslog/logdata.go.
var traefikDialect = &Dialect{
	Name: "traefik", Title: "Traefik, JSON", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.json() >= 50 && s.anyKey("StartUTC", "StartLocal") && s.anyKey("DownstreamStatus", "RequestPath", "Duration") {
			return 95
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		return newTabled(s, newAssembler(o, "", ""), []key{
			{"StartUTC", binding{field: fieldStart}},
			{"StartLocal", binding{field: fieldStart}},
			{"Duration", binding{field: fieldDuration, unit: unitNano}},
			{"RequestMethod", binding{field: fieldMethod}},
			{"RequestPath", binding{field: fieldPath}},
			{"DownstreamStatus", binding{field: fieldStatus}},
			{"OriginStatus", binding{field: fieldStatus}},
			{"ClientHost", binding{field: fieldClient}},
			{"ClientAddr", binding{field: fieldClient}},
			{"ClientUsername", binding{field: fieldUser}},
			{"RetryAttempts", binding{field: fieldRetries}},
		}, func(t *tabled) {
			t.skip = func(r *record) string {
				if !r.has(fieldPath) {
					return reasonNotRequest
				}
				return ""
			}
		})
	},
}

// Traefik's variant of the common log format ends with the number of the
// request, the names of router and server, and the duration:
//
//	... "agent" 12 "router@docker" "http://10.0.0.2:80" 13ms
//
// The time is that of the start, in whole seconds.
var traefikCLFDialect = &Dialect{
	Name: "traefik-clf", Title: "Traefik, common log format", Vantage: "proxy",
	Detect: func(s *Sample) int {
		return s.share(func(b []byte) bool {
			var c combined
			_, ok := c.traefik(b)
			return ok
		}) * 9 / 10
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		p := &traefikCLF{assembler: newAssembler(o, "", "")}
		probe := probe(s, p.fields)
		p.cap = probe.capability(&p.assembler)
		p.cap.Arrival = max(p.cap.Arrival, time.Second)
		p.cap.Notes = append(p.cap.Notes, "stamps are whole seconds: accessLog.format json has nanoseconds")
		return p, probe.check(o)
	},
}

type traefikCLF struct {
	assembler
	line combined
	rec  record
	out  capture.Logged
	cap  Capability
}

func (p *traefikCLF) Capability() Capability { return p.cap }
func (p *traefikCLF) Flush(*Emitter)         {}

func (p *traefikCLF) Parse(b []byte, e *Emitter) error {
	p.rec.reset()
	if err := p.fields(b, &p.rec); err != nil {
		return err
	}
	return p.emit(&p.rec, &p.out, e)
}

var traefikMilli = &binding{field: fieldDuration, unit: unitMilli}

func (p *traefikCLF) fields(b []byte, r *record) error {
	ms, ok := p.line.traefik(b)
	if !ok {
		return errCLF
	}
	p.line.put(r, fieldStart)
	r.put(traefikMilli, ms, false)
	return nil
}

// traefik parses a line and returns its duration.
func (c *combined) traefik(b []byte) (ms []byte, ok bool) {
	if c.parse(b) != nil || !bytes.HasSuffix(c.tail, []byte("ms")) {
		return nil, false
	}
	ms = c.tail[bytes.LastIndexByte(c.tail, ' ')+1 : len(c.tail)-2]
	_, ok = atoi(ms)
	return ms, ok
}
