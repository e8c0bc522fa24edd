package proxylog

import (
	"errors"
	"slices"
	"time"

	"reprise/traceformat"
)

// A probed sample knows which fields the records of a log have and how their
// times are spelt.
type probed struct {
	has   map[field]bool
	tick  map[field]time.Duration
	naive map[field]bool // has stamps without a zone
	bare  map[field]bool // has stamps without a year
	n     int
}

func newProbed() *probed {
	return &probed{has: map[field]bool{}, tick: map[field]time.Duration{}, naive: map[field]bool{}, bare: map[field]bool{}}
}

// probe runs a dialect over its sample.
func probe(s *Sample, fields func([]byte, *record) error) *probed {
	p := newProbed()
	for _, b := range s.Records {
		var r record
		if fields(b, &r) == nil {
			p.add(&r)
		}
	}
	return p
}

func (p *probed) add(r *record) {
	p.n++
	for f := range field(numFields) {
		if !r.has(f) {
			continue
		}
		p.has[f] = true
		v := r.vals[f]
		var tick time.Duration
		switch f {
		case fieldStart, fieldEnd, fieldFirst:
			if v.bind.unit <= unitNano && (v.bind.unit != unitAuto || !isDate(v.raw)) {
				_, tick, _ = epoch(v.raw, v.bind.unit)
			} else if c, ok := parseCivil(v.raw, v.bind.unit, v.bind.layout); ok {
				tick = c.tick
				p.naive[f] = p.naive[f] || !c.zoned
				p.bare[f] = p.bare[f] || !c.yeared
			}
		case fieldDuration:
			if v.bind.unit != unitSpelt && v.bind.unit.scale() > 0 {
				tick = time.Duration(pow10[max(0, v.bind.unit.scale()-places(v.raw))])
			}
		}
		// Trailing zeros may be left out: the finest of the sample counts.
		if tick > 0 && (p.tick[f] == 0 || tick < p.tick[f]) {
			p.tick[f] = tick
		}
	}
}

// capability is what the fields of the sample allow.
func (p *probed) capability(a *assembler) Capability {
	c := Capability{
		TTFT: "no", Duration: p.has[fieldDuration] || p.has[fieldStart] && p.has[fieldEnd],
		Tokens: p.has[fieldPrompt] || p.has[fieldOutput] || p.has[fieldPerToken] && p.has[fieldDecode], Cached: p.has[fieldCached],
		Model:  p.has[fieldModel] || p.has[fieldModelAsked],
		Client: p.has[fieldClient], Session: p.has[fieldSession], Prefix: p.has[fieldPrefix],
		Aborts: p.has[fieldTermination] || p.has[fieldFlags],
		Status: p.has[fieldStatus] || p.has[fieldResult],
	}
	switch {
	case p.has[fieldStart]:
		c.ArrivalFrom, c.Arrival = "start", p.tick[fieldStart]
	case p.has[fieldEnd] && p.has[fieldDuration]:
		c.ArrivalFrom, c.Arrival = "end - duration", max(p.tick[fieldEnd], p.tick[fieldDuration])
	case p.has[fieldEnd]:
		c.ArrivalFrom, c.Arrival = "end", p.tick[fieldEnd]
	}
	switch {
	case p.has[fieldTTFT] || p.has[fieldFirst]:
		c.TTFT = a.ttft
	case p.has[fieldHeaderTime] && a.o.TrustHeaderTime:
		c.TTFT = traceformat.TTFTHeader
		c.Notes = append(c.Notes, "the time to the head of the answer stands for the TTFT: true of engines that hold the head back until the first token (SGLang), about 0 for those that do not (vLLM)")
	case p.has[fieldHeaderTime]:
		c.Notes = append(c.Notes, "the log has the time to the head of the answer, which is no TTFT; --trust-header-time takes it for one")
	}
	return c
}

// check says what has to be given before such a log can be read.
func (p *probed) check(o *Options) error {
	var errs []error
	hasTime := false
	for _, f := range []field{fieldStart, fieldEnd, fieldFirst} {
		if p.has[f] && f != fieldFirst {
			hasTime = true
		}
		if p.naive[f] && o.Zone == nil {
			errs = append(errs, &NeedError{"the log's times name no zone", "--tz ZONE, such as --tz UTC or --tz Europe/Berlin"})
		}
		if p.bare[f] && o.Year == 0 {
			errs = append(errs, &NeedError{"the log's times name no year", "--year YEAR"})
		}
	}
	switch {
	case p.n == 0:
		errs = append(errs, errors.New("none of the first lines can be read in this dialect"))
	case !hasTime:
		errs = append(errs, errors.New("the log has no time that is known: name its columns with --mapping or --log-format"))
	case !p.has[fieldStart] && !p.has[fieldDuration] && !o.ArrivalsAreEnd:
		errs = append(errs, &NeedError{"the log has the time at which requests ended and not how long they took", "--arrivals-are-end to take that for the arrival"})
	}
	// One reason is said once, whatever fields it concerns.
	return errors.Join(slices.CompactFunc(errs, func(a, b error) bool { return a.Error() == b.Error() })...)
}
