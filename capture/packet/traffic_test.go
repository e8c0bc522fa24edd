package packet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"reprise/capture"
	"reprise/capture/packet/pcaptest"
)

const (
	ms    = int64(1e6)
	epoch = int64(1_790_000_000) * 1e9
)

// truth is what a generated request was.
type truth struct {
	conn       int
	id         int // max_tokens of the request, completion_tokens of the answer
	sent       int64
	first, end int64
}

// traffic is generated requests on connections of their own, in rounds so that
// they interleave. Each asks for a number of tokens that no other asks for, and
// its answer's usage says the same number.
type traffic struct {
	net   pcaptest.Net
	truth []truth
}

func requestBody(id int) string {
	return fmt.Sprintf(`{"model":"m","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"%s"}]}`, id, strings.Repeat("word ", 20+id%300))
}

func event(id, i int) string {
	return fmt.Sprintf("data: {\"id\":\"c%d\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"tok%d \"},\"finish_reason\":null}]}\n\n", id, i)
}

func lastEvent(id int) string {
	return fmt.Sprintf("data: {\"id\":\"c%d\",\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\ndata: [DONE]\n\n", id, id, 11+id)
}

// http1 makes conns keep-alive connections of each requests and events.
func http1(conns, requests, events int) *traffic {
	g := &traffic{}
	r := rand.New(rand.NewPCG(7, 7))
	type client struct {
		*pcaptest.Conn
		t int64
	}
	list := make([]client, conns)
	for i := range list {
		list[i] = client{g.net.Dial(), epoch + int64(r.IntN(1000))*ms}
		list[i].Open(list[i].t)
		list[i].t += ms
	}
	for k := range requests {
		for i := range list {
			c := &list[i]
			id := 1 + k*conns + i
			body := requestBody(id)
			head := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nX-Id: %d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", id, len(body))
			tr := truth{conn: i, id: id, sent: c.t}
			c.Send(pcaptest.Client, c.t, []byte(head+body))
			c.t += 20 * ms
			c.Send(pcaptest.Server, c.t, []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"))
			for e := range events {
				c.t += int64(1+r.IntN(10)) * ms
				if e == 0 {
					tr.first = c.t
				}
				d := event(id, e)
				c.Send(pcaptest.Server, c.t, fmt.Appendf(nil, "%x\r\n%s\r\n", len(d), d))
			}
			c.t += ms
			d := lastEvent(id)
			c.Send(pcaptest.Server, c.t, fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(d), d))
			tr.end = c.t
			g.truth = append(g.truth, tr)
			c.t += int64(1+r.IntN(50)) * ms
		}
	}
	for i := range list {
		list[i].Close(pcaptest.Client, list[i].t)
	}
	g.net.Sort()
	return g
}

// pipelined makes connections whose clients send two requests at a time.
func pipelined(conns, requests int) *traffic {
	g := &traffic{}
	r := rand.New(rand.NewPCG(9, 9))
	for i := range conns {
		c := g.net.Dial()
		t := epoch + int64(r.IntN(1000))*ms
		c.Open(t)
		for k := 0; k < requests; k += 2 {
			for j := range 2 {
				t += ms
				id := 1 + (k+j)*conns + i
				body := requestBody(id)
				c.Send(pcaptest.Client, t, fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body))
				g.truth = append(g.truth, truth{conn: i, id: id, sent: t})
			}
			for j := range 2 {
				id := 1 + (k+j)*conns + i
				t += 10 * ms
				c.Send(pcaptest.Server, t, []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
				for e := range 4 {
					t += ms
					d := event(id, e)
					c.Send(pcaptest.Server, t, fmt.Appendf(nil, "%x\r\n%s\r\n", len(d), d))
				}
				t += ms
				d := lastEvent(id)
				c.Send(pcaptest.Server, t, fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(d), d))
			}
		}
		c.Close(pcaptest.Client, t+ms)
	}
	g.net.Sort()
	return g
}

// h2c makes connections of HTTP/2 with two requests under way at a time.
func h2c(conns, requests, events int) *traffic {
	g := &traffic{}
	r := rand.New(rand.NewPCG(8, 8))
	for i := range conns {
		c := g.net.Dial()
		t := epoch + int64(r.IntN(1000))*ms
		c.Open(t)
		t += ms
		var cb, sb bytes.Buffer
		cf, sf := http2.NewFramer(&cb, nil), http2.NewFramer(&sb, nil)
		var hb bytes.Buffer
		cenc := hpack.NewEncoder(&hb)
		var sh bytes.Buffer
		senc := hpack.NewEncoder(&sh)
		flush := func(dir int) {
			b := &cb
			if dir == pcaptest.Server {
				b = &sb
			}
			c.Send(dir, t, b.Bytes())
			b.Reset()
		}
		cb.WriteString(http2.ClientPreface)
		cf.WriteSettings()
		flush(pcaptest.Client)
		sf.WriteSettings()
		sf.WriteSettingsAck()
		flush(pcaptest.Server)
		t += ms
		for k := 0; k < requests; k += 2 {
			var open []*truth
			for j := range min(2, requests-k) {
				stream := uint32(2*(k+j) + 1)
				id := 1 + (k+j)*conns + i
				hb.Reset()
				for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "host"}, {":path", "/v1/chat/completions"}, {"content-type", "application/json"}, {"x-id", fmt.Sprint(id)}} {
					cenc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
				}
				cf.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: hb.Bytes(), EndHeaders: true})
				cf.WriteData(stream, true, []byte(requestBody(id)))
				g.truth = append(g.truth, truth{conn: i, id: id, sent: t})
				flush(pcaptest.Client)
				t += ms
			}
			for j := range g.truth[len(g.truth)-min(2, requests-k):] {
				open = append(open, &g.truth[len(g.truth)-min(2, requests-k)+j])
			}
			t += 20 * ms
			for j, tr := range open {
				sh.Reset()
				senc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
				senc.WriteField(hpack.HeaderField{Name: "content-type", Value: "text/event-stream"})
				senc.WriteField(hpack.HeaderField{Name: "x-id", Value: fmt.Sprint(tr.id)})
				sf.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*(k+j) + 1), BlockFragment: sh.Bytes(), EndHeaders: true})
				flush(pcaptest.Server)
				t += ms
			}
			for e := range events {
				for j, tr := range open {
					t += int64(1+r.IntN(10)) * ms
					if e == 0 {
						tr.first = t
					}
					d := []byte(event(tr.id, e))
					if e%3 == 0 {
						sf.WriteDataPadded(uint32(2*(k+j)+1), false, d, make([]byte, 5))
					} else {
						sf.WriteData(uint32(2*(k+j)+1), false, d)
					}
					flush(pcaptest.Server)
				}
				if e%5 == 4 {
					cf.WriteWindowUpdate(0, 1000)
					flush(pcaptest.Client)
				}
			}
			for j, tr := range open {
				t += ms
				sf.WriteData(uint32(2*(k+j)+1), true, []byte(lastEvent(tr.id)))
				flush(pcaptest.Server)
				tr.end = t
			}
			t += 10 * ms
		}
		c.Close(pcaptest.Client, t)
	}
	g.net.Sort()
	return g
}

// verdict compares what was recorded with the truth.
type verdict struct {
	arrivals, complete, wrong, whole int
}

func judge(t testing.TB, g *traffic, rec *seen) (v verdict) {
	t.Helper()
	byID := map[int]*truth{}
	for i := range g.truth {
		byID[g.truth[i].id] = &g.truth[i]
	}
	got := map[int]bool{}
	for _, x := range rec.list {
		var id int
		fmt.Sscan(x.header, &id)
		var q struct {
			MaxTokens int `json:"max_tokens"`
		}
		if x.reqEnd && x.reqGap == 0 {
			if err := json.Unmarshal(x.req, &q); err != nil {
				t.Errorf("a request without gaps has a damaged body: %v", err)
			} else if id != 0 && id != q.MaxTokens {
				v.wrong++
				t.Errorf("head of request %d, body of %d", id, q.MaxTokens)
			}
			id = q.MaxTokens
		}
		tr := byID[id]
		if tr == nil || got[id] {
			if id != 0 {
				t.Errorf("request %d recorded twice, or never sent", id)
			}
			continue
		}
		got[id] = true
		if x.begin == tr.sent {
			v.arrivals++
		}
		for line := range bytes.Lines(x.resp) {
			if rest, ok := bytes.CutPrefix(line, []byte(`data: {"id":"c`)); ok {
				var of int
				fmt.Sscanf(string(rest), "%d", &of)
				if of != id && !(x.respGap > 0 && len(rest) < 80) {
					v.wrong++
					t.Errorf("request %d has an event of %d", id, of)
				}
			}
		}
		if x.done {
			v.complete++
		}
		if x.done && x.respGap == 0 && bytes.HasSuffix(x.resp, []byte(lastEvent(id))) && x.status == 200 {
			first := int64(0)
			if len(x.pieces) > 0 {
				first = x.pieces[0].t
			}
			if first == tr.first && x.ended == tr.end {
				v.whole++
			}
		}
	}
	return v
}

func TestNothingLost(t *testing.T) {
	for _, tt := range []struct {
		name string
		g    *traffic
	}{{"http1", http1(200, 50, 5)}, {"h2c", h2c(100, 100, 5)}} {
		for _, way := range []string{"plain", "doubled", "reordered", "late on the wire", "small segments"} {
			t.Run(tt.name+"/"+way, func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, 2))
				p := tt.g.net.Packets
				exact := true
				switch way {
				case "doubled":
					p = pcaptest.Double(p)
				case "reordered":
					p = pcaptest.Shuffle(p, 0.05, 8, r)
				case "late on the wire":
					p = pcaptest.Restamp(pcaptest.Shuffle(p, 0.05, 8, r))
					exact = false
				case "small segments":
					if tt.name == "h2c" {
						t.Skip("made for HTTP/1")
					}
				}
				rec, s := play(t, pcaptest.Source(p), Options{Ports: []uint16{8000}})
				v := judge(t, tt.g, rec)
				n := len(tt.g.truth)
				if v.wrong != 0 || v.complete != n || len(rec.list) != n || len(rec.dropped) != 0 {
					t.Errorf("%+v of %d requests, %d exchanges, dropped %v, stats %+v", v, n, len(rec.list), rec.dropped, s)
				}
				if exact && (v.whole != n || v.arrivals != n) {
					t.Errorf("%+v of %d requests with the times they had", v, n)
				}
				if s.Reassembly.Gaps != 0 {
					t.Errorf("%d gaps where nothing is missing: %+v", s.Reassembly.Gaps, s.Reassembly)
				}
				if way == "doubled" && s.Reassembly.Duplicates == 0 {
					t.Error("no duplicates counted")
				}
			})
		}
	}
}

func TestOnePercentLost(t *testing.T) {
	for _, tt := range []struct {
		name string
		g    *traffic
	}{{"http1", http1(200, 50, 10)}, {"h2c", h2c(200, 50, 10)}} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(5) {
				p := pcaptest.Lose(tt.g.net.Packets, 0.01, rand.New(rand.NewPCG(seed, 3)))
				rec, s := play(t, pcaptest.Source(p), Options{Ports: []uint16{8000}})
				v := judge(t, tt.g, rec)
				n := len(tt.g.truth)
				if v.wrong > 0 || float64(v.arrivals) < 0.97*float64(n) {
					t.Errorf("seed %d: %+v of %d", seed, v, n)
				}
				if seed == 0 {
					how := map[capture.Ending]int{}
					for _, x := range rec.list {
						how[x.how]++
					}
					t.Logf("%+v of %d, dropped %v, endings %v, gaps %d, resyncs %d", v, n, rec.dropped, how, s.Reassembly.Gaps, s.HTTP.Resyncs)
				}
			}
		})
	}
}

// Nothing that a capture can do to packets makes an answer somebody else's.
func TestNoWrongPairings(t *testing.T) {
	for _, tt := range []struct {
		name string
		g    *traffic
	}{{"http1", http1(100, 30, 4)}, {"pipelined", pipelined(200, 30)}, {"h2c", h2c(60, 30, 4)}} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(12) {
				r := rand.New(rand.NewPCG(seed, 4))
				share := []float64{0.003, 0.01, 0.05, 0.2}[seed%4]
				if tt.name == "pipelined" {
					share = min(share, 0.05) // beyond, nothing tells a pipelined request that is missed from others
				}
				if tt.name == "pipelined" && seed%3 == 1 {
					share = 0 // losses can hide for ever that others were sent before the capture began
				}
				p := pcaptest.Lose(tt.g.net.Packets, share, r)
				if seed%3 == 1 {
					p = pcaptest.Behead(p, r.IntN(30))
				}
				if seed%3 == 2 {
					p = pcaptest.Restamp(pcaptest.Shuffle(p, 0.05, 4, r))
				}
				if seed%2 == 1 {
					p = pcaptest.Double(p)
				}
				rec, _ := play(t, pcaptest.Source(p), Options{Ports: []uint16{8000}})
				if v := judge(t, tt.g, rec); v.wrong > 0 {
					t.Errorf("seed %d: %+v of %d", seed, v, len(tt.g.truth))
				}
			}
		})
	}
}

func TestLateJoin(t *testing.T) {
	for _, tt := range []struct {
		name string
		g    *traffic
	}{{"http1", http1(100, 50, 10)}, {"pipelined", pipelined(60, 50)}, {"h2c", h2c(100, 50, 10)}} {
		t.Run(tt.name, func(t *testing.T) {
			want := 0.99
			if tt.name == "pipelined" {
				want = 0.97 // of a burst that was under way, nothing says whose answer is whose
			}
			for _, n := range []int{1, 2, 3, 4, 5, 7, 11, 20, 33, 100} {
				p := pcaptest.Behead(tt.g.net.Packets, n)
				from := map[int]int64{} // when each connection is seen first
				for i := range p {
					if _, ok := from[p[i].Conn]; !ok {
						from[p[i].Conn] = p[i].Time
					}
				}
				later := &traffic{}
				for _, tr := range tt.g.truth {
					if tr.sent >= from[tr.conn] {
						later.truth = append(later.truth, tr)
					}
				}
				for _, o := range []Options{{Ports: []uint16{8000}}, {}} {
					rec, s := play(t, pcaptest.Source(p), o)
					v := lateVerdict(later, rec)
					if v.wrong > 0 || float64(v.complete) < want*float64(len(later.truth)) {
						t.Errorf("without the first %d packets: %+v of %d; dropped %v, stats %+v", n, v, len(later.truth), rec.dropped, s.HTTP)
					}
				}
			}
		})
	}
}

// lateVerdict counts what of the requests sent after the join is there with
// body and answer.
func lateVerdict(g *traffic, rec *seen) (v verdict) {
	want := map[int]bool{}
	for _, tr := range g.truth {
		want[tr.id] = true
	}
	for _, x := range rec.list {
		var q struct {
			MaxTokens int `json:"max_tokens"`
		}
		if json.Unmarshal(x.req, &q) != nil || !want[q.MaxTokens] {
			continue
		}
		if x.header != "" && x.header != fmt.Sprint(q.MaxTokens) {
			v.wrong++
		}
		if x.target != "" && x.target != "/v1/chat/completions" || x.method != "" && x.method != "POST" || x.status != 0 && x.status != 200 {
			v.wrong++
		}
		switch {
		case !x.done:
		case bytes.HasSuffix(x.resp, []byte(lastEvent(q.MaxTokens))):
			v.complete++
		default:
			v.wrong++
		}
	}
	return v
}
