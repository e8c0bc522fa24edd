package reassembly

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// streams is a handler that keeps what it gets.
type streams struct {
	t      testing.TB
	data   [2][]byte // gaps are zeros
	gaps   [2]int64
	off    [2]int64
	clock  [2]int64
	fin    [2]bool
	closed int
	why    Closing
	by     Dir
}

func (s *streams) Data(d Dir, at Mark, p []byte) {
	if len(p) == 0 {
		s.t.Error("a call of Data without bytes")
	}
	s.next(d, at, int64(len(p)))
	s.data[d] = append(s.data[d], p...)
}

func (s *streams) Gap(d Dir, at Mark, n int64) {
	if n <= 0 {
		s.t.Errorf("a gap of %d bytes", n)
	}
	s.next(d, at, n)
	s.gaps[d] += n
	if n < 1<<12 {
		s.data[d] = append(s.data[d], make([]byte, n)...)
	}
}

func (s *streams) next(d Dir, at Mark, n int64) {
	if s.closed > 0 || s.fin[d] {
		s.t.Error("bytes after the end")
	}
	if s.clock[d] > 0 && at.Off != s.off[d] {
		s.t.Errorf("bytes at offset %d, want %d", at.Off, s.off[d])
	}
	if at.Time < s.clock[d] {
		s.t.Errorf("time goes back from %d to %d", s.clock[d], at.Time)
	}
	s.off[d], s.clock[d] = at.Off+n, at.Time
}

func (s *streams) Fin(d Dir, t int64) {
	if s.fin[d] {
		s.t.Error("two calls of Fin")
	}
	s.fin[d] = true
}

func (s *streams) Close(t int64, why Closing, by Dir) { s.closed++; s.why, s.by = why, by }

// host is an assembler with one connection.
type host struct {
	*Assembler
	conns []*streams
	now   int64
}

func newHost(t testing.TB, o Options) *host {
	h := &host{now: 1e9}
	h.Assembler = New(o, func(*Conn) Handler {
		s := &streams{t: t}
		h.conns = append(h.conns, s)
		return s
	})
	return h
}

var (
	clientEnd = Endpoint{[16]byte{15: 1}, 40000}
	serverEnd = Endpoint{[16]byte{15: 2}, 80}
)

// the directions of clientEnd and serverEnd: ports sort the key
const (
	fromServer = Dir(0)
	fromClient = Dir(1)
)

// send gives the assembler a segment from the client, or the server.
func (h *host) send(from Dir, flags uint8, seq, ack uint32, p string) {
	h.now += 1e6
	s := Segment{Time: h.now, Src: clientEnd, Dst: serverEnd, Seq: seq, Ack: ack, Flags: flags, Payload: []byte(p)}
	if from == fromServer {
		s.Src, s.Dst = s.Dst, s.Src
	}
	h.Add(&s)
}

func (h *host) handshake(c, s uint32) {
	h.send(fromClient, SYN, c, 0, "")
	h.send(fromServer, SYN|ACK, s, c+1, "")
	h.send(fromClient, ACK, c+1, s+1, "")
}

// Each case was sent across the wrap of sequence numbers too: the third column
// is where the stream begins.
func TestOverlapAndWrap(t *testing.T) {
	for _, begin := range []uint32{1000, 0xffffffff, 0xfffffff8, 0xfffffff0, 0x7ffffff8} {
		h := newHost(t, Options{})
		h.handshake(begin-1, 5)
		at := func(i uint32) uint32 { return begin + i }
		h.send(fromClient, ACK, at(0), 6, "0123456789")
		h.send(fromClient, ACK, at(5), 6, "56789ABCDE")     // overlaps what is delivered
		h.send(fromClient, ACK, at(0), 6, "0123456789")     // a retransmission
		h.send(fromClient, ACK, at(20), 6, "KLMNO")         // ahead
		h.send(fromClient, ACK, at(18), 6, "IJKL")          // overlaps what is held
		h.send(fromClient, ACK, at(14), 6, "x")             // a keep-alive: one old byte, of any value
		h.send(fromClient, ACK, at(13), 6, "DEFGHIJKLMNOP") // closes the hole, overlaps both sides
		h.send(fromClient, ACK, at(26), 6, "xyz")
		h.send(fromClient, FIN|ACK, at(29), 6, "")
		h.send(fromServer, FIN|ACK, 6, at(30), "")
		if len(h.conns) != 1 {
			t.Fatalf("begin %#x: %d connections", begin, len(h.conns))
		}
		if got := string(h.conns[0].data[fromClient]); got != "0123456789ABCDEFGHIJKLMNOPxyz" {
			t.Errorf("begin %#x: stream is %q", begin, got)
		}
		if h.Gaps != 0 || h.conns[0].closed != 1 || h.conns[0].why != Finished || h.conns[0].by != fromClient {
			t.Errorf("begin %#x: %+v, closed %d as %d by %d", begin, h.Counters, h.conns[0].closed, h.conns[0].why, h.conns[0].by)
		}
	}
}

func TestGapAfterAck(t *testing.T) {
	h := newHost(t, Options{})
	h.handshake(1, 1)
	h.send(fromServer, ACK, 2, 2, "abc")
	h.send(fromServer, ACK, 8, 2, "ijk") // "def" and "gh" are missing
	for range 40 {
		h.send(fromServer, ACK, 11, 2, "")
	}
	if h.Gaps != 0 {
		t.Fatal("a gap before the peer has acknowledged what is missing")
	}
	for range 40 {
		h.send(fromClient, ACK, 2, 11, "")
	}
	if got := string(h.conns[0].data[fromServer]); got != "abc\x00\x00\x00ijk" || h.GapBytes != 3 {
		t.Errorf("stream is %q with %d bytes of gaps", got, h.GapBytes)
	}
}

func TestReusedPorts(t *testing.T) {
	h := newHost(t, Options{})
	h.handshake(100, 200)
	h.send(fromClient, ACK, 101, 201, "first")
	h.handshake(5000, 9000) // without an end of the first
	h.send(fromClient, ACK, 5001, 9001, "second")
	h.send(fromClient, SYN, 5000, 0, "") // a SYN sent again opens nothing
	h.send(fromServer, RST, 9001, 0, "")
	h.handshake(70000, 80000)
	h.send(fromClient, ACK, 70001, 80001, "third")
	h.Close()
	if len(h.conns) != 3 {
		t.Fatalf("%d connections, want 3", len(h.conns))
	}
	for i, want := range []struct {
		data string
		why  Closing
	}{{"first", Replaced}, {"second", Reset}, {"third", EndOfCapture}} {
		if c := h.conns[i]; string(c.data[fromClient]) != want.data || c.why != want.why || c.closed != 1 {
			t.Errorf("connection %d: %q, closed %d times as %d; want %q as %d", i, c.data[fromClient], c.closed, c.why, want.data, want.why)
		}
	}
}

func TestLateJoinKeepAliveAndProbe(t *testing.T) {
	h := newHost(t, Options{})
	h.send(fromClient, ACK, 499, 900, "") // a keep-alive opens nothing
	h.send(fromServer, ACK, 900, 500, "data")
	h.send(fromServer, ACK, 903, 500, "a") // a keep-alive with a byte
	h.send(fromClient, ACK, 500, 904, "")
	h.send(fromServer, ACK, 904, 500, "m") // a probe of a closed window carries the next byte
	h.send(fromServer, ACK, 904, 500, "more")
	if got := string(h.conns[0].data[fromServer]); got != "datamore" {
		t.Errorf("stream is %q", got)
	}
	if h.LateJoins != 1 {
		t.Errorf("%d late joins", h.LateJoins)
	}
}

func TestSnapLengthLeavesGap(t *testing.T) {
	h := newHost(t, Options{})
	h.handshake(1, 1)
	h.now += 1e6
	h.Add(&Segment{Time: h.now, Src: clientEnd, Dst: serverEnd, Seq: 2, Ack: 2, Flags: ACK, Payload: []byte("ab"), Missing: 3})
	h.send(fromClient, ACK, 7, 2, "fg")
	if got := string(h.conns[0].data[fromClient]); got != "ab\x00\x00\x00fg" || h.TruncatedBytes != 3 {
		t.Errorf("stream is %q, %d truncated", got, h.TruncatedBytes)
	}
}

func TestIdleStreamsSurviveHalfAnHour(t *testing.T) {
	h := newHost(t, Options{})
	h.handshake(1, 1)
	h.send(fromServer, ACK, 2, 2, "before")
	h.now += 31 * 60e9
	h.send(fromServer, ACK, 8, 2, " after")
	if got := string(h.conns[0].data[fromServer]); got != "before after" || len(h.conns) != 1 {
		t.Errorf("stream is %q on %d connections", got, len(h.conns))
	}
	h.now += 2 * 3600e9
	h.Add(&Segment{Time: h.now, Src: clientEnd, Dst: Endpoint{Port: 1}, Flags: SYN})
	if h.conns[0].why != Idle || h.IdleExpired != 1 {
		t.Errorf("not expired after two hours: %d", h.conns[0].why)
	}
}

// Whatever a peer sends, held bytes stay within the budget of the connection,
// and of all.
func TestBudgets(t *testing.T) {
	h := newHost(t, Options{PerConn: 64 << 10, Memory: 1 << 20})
	big := string(bytes.Repeat([]byte("x"), 1000))
	for c := range 100 {
		for i := range 200 {
			h.now += 1e3
			s := Segment{Time: h.now, Src: Endpoint{Port: uint16(1000 + c)}, Dst: serverEnd, Seq: uint32(10 + 2000*i), Flags: ACK, Payload: []byte(big)}
			h.Add(&s)
			if h.Budget.Used > 1<<20 {
				t.Fatalf("%d bytes held", h.Budget.Used)
			}
		}
	}
	for c := range 20000 { // connections that say nothing
		h.now += 1e3
		h.Add(&Segment{Time: h.now, Src: Endpoint{[16]byte{byte(c), byte(c >> 8)}, 5}, Dst: serverEnd, Flags: SYN})
	}
	if h.Budget.Used > 1<<20 || h.BudgetGaps == 0 || h.EvictedConns == 0 {
		t.Errorf("%d bytes held, %+v", h.Budget.Used, h.Counters)
	}
	h.Close()
	if h.Budget.Used != 0 {
		t.Errorf("%d bytes held after the end", h.Budget.Used)
	}
}

// TestAnySegmentation cuts two streams into segments that overlap, come twice
// and out of order, at any place of the sequence space, and wants the streams
// back, byte for byte.
func TestAnySegmentation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var want [2][]byte
		var base [2]uint32
		var list []Segment
		for d := range Dir(2) {
			want[d] = rapid.SliceOfN(rapid.Byte(), 1, 400).Draw(rt, "stream")
			base[d] = rapid.Uint32().Draw(rt, "base")
			if rapid.Bool().Draw(rt, "wraps") {
				base[d] = -uint32(rapid.IntRange(1, 400).Draw(rt, "before wrap"))
			}
		}
		for d := range Dir(2) {
			src, dst := clientEnd, serverEnd
			if d == fromServer {
				src, dst = dst, src
			}
			add := func(from, to int) {
				s := Segment{Src: src, Dst: dst, Flags: ACK, Seq: base[d] + uint32(from), Ack: base[1-d], Payload: want[d][from:to], ID: uint16(len(list))}
				at := rapid.IntRange(0, len(list)).Draw(rt, "place")
				list = append(list[:at], append([]Segment{s}, list[at:]...)...)
			}
			for from := 0; from < len(want[d]); {
				to := rapid.IntRange(from+1, min(len(want[d]), from+60)).Draw(rt, "cut")
				add(from, to)
				if rapid.IntRange(0, 3).Draw(rt, "again") == 0 {
					a := rapid.IntRange(0, from).Draw(rt, "again from")
					add(a, to)
				}
				from = to
			}
		}
		h := newHost(t, Options{})
		h.handshake(base[fromClient]-1, base[fromServer]-1)
		for i := range list {
			h.now += 1e6
			list[i].Time = h.now
			h.Add(&list[i])
		}
		h.Close()
		for d := range Dir(2) {
			if !bytes.Equal(h.conns[0].data[d], want[d]) {
				rt.Fatalf("direction %d: %q, want %q", d, h.conns[0].data[d], want[d])
			}
		}
		if h.Gaps != 0 || h.Budget.Used != 0 {
			rt.Fatalf("%d gaps, %d bytes held", h.Gaps, h.Budget.Used)
		}
	})
}

// FuzzAssembler checks what handlers rely on (see streams) with any segments,
// and that budgets are given back.
func FuzzAssembler(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 8 {
		b := make([]byte, 200)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h := newHost(t, Options{PerConn: 4 << 10, Memory: 32 << 10})
		payload := bytes.Repeat([]byte("p"), 4096)
		for len(b) >= 8 {
			s := Segment{
				Time: h.now + int64(b[0])*int64(b[0])*1e6, Src: clientEnd, Dst: serverEnd, Flags: b[1],
				Seq: uint32(b[2])<<4 | uint32(b[3])<<24, Ack: uint32(b[4])<<4 | uint32(b[5])<<24,
				Payload: payload[:int(b[6])<<4], Missing: int(b[7] >> 6),
			}
			if b[7]&1 != 0 {
				s.Src, s.Dst = s.Dst, s.Src
			}
			s.Src.Port += uint16(b[7] >> 1 & 3)
			h.now = s.Time
			b = b[8:]
			h.Add(&s)
			if h.Budget.Used > 32<<10 || h.Budget.Used < 0 {
				t.Fatalf("%d bytes held", h.Budget.Used)
			}
		}
		h.Close()
		for i, c := range h.conns {
			if c.closed != 1 {
				t.Errorf("connection %d closed %d times", i, c.closed)
			}
		}
		if h.Budget.Used != 0 || len(h.Assembler.conns) != 0 {
			t.Errorf("%d bytes and %d connections left", h.Budget.Used, len(h.Assembler.conns))
		}
	})
}

func ExampleMakeKey() {
	_, d := MakeKey(&clientEnd, &serverEnd)
	_, back := MakeKey(&serverEnd, &clientEnd)
	fmt.Println(d, back)
	// Output: 1 0
}
