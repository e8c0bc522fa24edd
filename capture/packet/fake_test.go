package packet

import (
	"reprise/capture"
	"reprise/capture/packet/frame"
	"reprise/capture/packet/wirehttp"
	"testing"
)

// seen is a recorder that keeps everything.
type seen struct {
	list    []*exchange
	dropped map[string]int
}

type piece struct {
	t int64
	n int
}

type exchange struct {
	client             string
	late               bool
	begin, asked       int64
	method, target     string
	header             string // X-Id
	req, resp          []byte
	pieces             []piece // of resp
	reqGap, respGap    int64
	reqEnd             bool
	status             int
	headAt, ended      int64
	done               bool
	how                capture.Ending
	reqHeads, respHead int
	over               bool
}

func (s *seen) Begin(t int64, c capture.Conn) wirehttp.Exchange {
	x := &exchange{begin: t, client: c.Client, late: c.LateJoin}
	s.list = append(s.list, x)
	return x
}

func (s *seen) Drop(reason string) {
	if s.dropped == nil {
		s.dropped = map[string]int{}
	}
	s.dropped[reason]++
}

func (x *exchange) RequestHead(t int64, method, target string, h capture.Header) {
	x.method, x.target = method, target
	if h != nil {
		x.header = h("x-id")
	}
	x.reqHeads++
}
func (x *exchange) RequestBody(t int64, p []byte) {
	if !x.over {
		x.req = append(x.req, p...)
	}
}
func (x *exchange) RequestEnd(t int64) { x.reqEnd, x.asked = true, t }
func (x *exchange) ResponseHead(t int64, status int, h capture.Header) {
	if status >= 200 || status == 0 {
		x.status, x.headAt = status, t
		x.respHead++
	}
}
func (x *exchange) ResponseBody(t int64, p []byte) {
	if !x.over {
		x.resp = append(x.resp, p...)
		x.pieces = append(x.pieces, piece{t, len(p)})
	}
}
func (x *exchange) ResponseEnd(t int64) {
	if !x.over {
		x.done, x.over, x.ended = true, true, t
	}
}
func (x *exchange) End(t int64, how capture.Ending) {
	if !x.over {
		x.over, x.how, x.ended = true, how, t
	}
}
func (x *exchange) Mispaired(t int64) {
	if !x.over {
		x.resp, x.pieces, x.respGap, x.status = nil, nil, 0, 0
		x.End(t, capture.Truncated)
	}
}
func (x *exchange) Gap(t int64, response bool, n int64) {
	if response {
		x.respGap += n
	} else {
		x.reqGap += n
	}
}

// play runs packets through an engine with a recorder that keeps everything.
func play(t testing.TB, src frame.Source, o Options) (*seen, Stats) {
	t.Helper()
	rec := &seen{}
	e := New(rec, o)
	m := frame.FromSource(src, frame.DefaultReorder)
	var p frame.Packet
	for m.Next(&p) == nil {
		e.Packet(&p)
	}
	for _, err := range m.Problems {
		t.Error(err)
	}
	e.Close()
	s := e.Stats()
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if s.Memory != 0 {
		t.Errorf("%d bytes of the budget are still taken after the end", s.Memory)
	}
	for i, x := range rec.list {
		if !x.over {
			t.Errorf("exchange %d was not ended", i)
		}
	}
	return rec, s
}

// seenNothing is a recorder that keeps nothing.
type seenNothing struct{}

type nothing struct{}

func (*seenNothing) Begin(int64, capture.Conn) wirehttp.Exchange  { return nothing{} }
func (*seenNothing) Drop(string)                                  {}
func (nothing) RequestHead(int64, string, string, capture.Header) {}
func (nothing) RequestBody(int64, []byte)                         {}
func (nothing) RequestEnd(int64)                                  {}
func (nothing) ResponseHead(int64, int, capture.Header)           {}
func (nothing) ResponseBody(int64, []byte)                        {}
func (nothing) ResponseEnd(int64)                                 {}
func (nothing) End(int64, capture.Ending)                         {}
func (nothing) Mispaired(int64)                                   {}
func (nothing) Gap(int64, bool, int64)                            {}
