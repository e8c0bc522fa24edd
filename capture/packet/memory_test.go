package packet

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"reprise/capture"
	"reprise/capture/packet/pcaptest"
)

// TestTwentyThousandStreams holds 20,000 answers open, with one segment in
// twenty out of order, and wants the heap within half a gibibyte, and flat.
func TestTwentyThousandStreams(t *testing.T) {
	const streams = 20000
	rounds := 30
	if testing.Short() {
		rounds = 6
	}
	rec, err := capture.NewRecorder(&rows{}, capture.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := New(Into(rec), Options{Ports: []uint16{8000}})
	r := rand.New(rand.NewPCG(3, 3))
	var n pcaptest.Net
	conns := make([]*pcaptest.Conn, streams)
	feed := func(reorder float64) {
		// What is out of order waits for the next packet of its stream.
		p := n.Packets
		for i := range p {
			if j := i + 2 + r.IntN(4); r.Float64() < reorder && j < len(p) {
				p[i], p[j] = p[j], p[i]
			}
		}
		for i := range p {
			e.Packet(&p[i].Packet)
		}
		n.Packets = n.Packets[:0]
	}
	now := epoch
	for i := range conns {
		c := n.Dial()
		conns[i] = c
		body := requestBody(i + 1)
		c.Open(now)
		c.Send(pcaptest.Client, now+100e3, fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		c.Send(pcaptest.Server, now+200e3, []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
		now += 1e6
		if i%100 == 99 {
			feed(0)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var early uint64
	for k := range rounds {
		for i, c := range conns {
			d := event(i+1, k)
			c.Send(pcaptest.Server, now, fmt.Appendf(nil, "%x\r\n%s\r\n", len(d), d))
			d = event(i+1, k)
			c.Send(pcaptest.Server, now+1e6, fmt.Appendf(nil, "%x\r\n%s\r\n", len(d), d))
			if i%100 == 99 {
				feed(0.05)
			}
		}
		now += 60e9 // half an hour in all
		if k == rounds/3 {
			early = heap()
		}
	}
	late := heap()
	s := e.Stats()
	if s.Open != streams || s.Reassembly.Gaps != 0 || s.Reassembly.OutOfOrder == 0 {
		t.Errorf("%d connections open, %+v", s.Open, s.Reassembly)
	}
	t.Logf("%d MiB after a third, %d MiB at the end; budget %d KiB, recorder %d KiB, %d segments out of order",
		early>>20, late>>20, s.Memory>>10, rec.Held()>>10, s.Reassembly.OutOfOrder)
	if late > 512<<20 {
		t.Errorf("heap of %d MiB", late>>20)
	}
	for i, c := range conns {
		d := lastEvent(i + 1)
		c.Send(pcaptest.Server, now, fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(d), d))
	}
	feed(0)
	e.Close()
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	if acc := rec.Accounts(); acc.Recorded != streams {
		t.Error(acc)
	}
}
