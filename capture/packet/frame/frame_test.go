package frame_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"reprise/capture/packet/frame"
	"reprise/capture/packet/pcaptest"
	"reprise/capture/packet/reassembly"
)

const epoch = int64(1_790_000_000_123_456_000)

// sample is a short conversation.
func sample() []pcaptest.Packet {
	var n pcaptest.Net
	c := n.Dial()
	c.Open(epoch)
	c.Send(pcaptest.Client, epoch+1e6, []byte("GET / HTTP/1.1\r\n\r\n"))
	c.Send(pcaptest.Server, epoch+2e6, bytes.Repeat([]byte("x"), 4000))
	c.Close(pcaptest.Client, epoch+3e6)
	return n.Packets
}

func read(t *testing.T, r io.Reader) (list []frame.Packet) {
	t.Helper()
	src, err := frame.NewSource(r)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for {
		var p frame.Packet
		if err := src.Next(&p); err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		p.Data = bytes.Clone(p.Data)
		list = append(list, p)
	}
}

func TestFormats(t *testing.T) {
	want := sample()
	gz := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		w.Write(b)
		w.Close()
		return out.Bytes()
	}
	zst := func(b []byte) []byte {
		w, _ := zstd.NewWriter(nil)
		return w.EncodeAll(b, nil)
	}
	for _, tt := range []struct {
		name string
		file []byte
		unit int64
	}{
		{"pcap, microseconds", pcaptest.Pcap(frame.Ethernet, false, false, want), 1000},
		{"pcap, nanoseconds", pcaptest.Pcap(frame.Ethernet, true, false, want), 1},
		{"pcap, big endian", pcaptest.Pcap(frame.Ethernet, false, true, want), 1000},
		{"pcap, nanoseconds, big endian", pcaptest.Pcap(frame.Ethernet, true, true, want), 1},
		{"pcapng, microseconds", pcaptest.PcapNG(frame.Ethernet, 6, false, want), 1000},
		{"pcapng, nanoseconds", pcaptest.PcapNG(frame.Ethernet, 9, false, want), 1},
		{"pcapng, big endian", pcaptest.PcapNG(frame.Ethernet, 9, true, want), 1},
		{"pcap, gzip", gz(pcaptest.Pcap(frame.Ethernet, true, false, want)), 1},
		{"pcapng, zstd", zst(pcaptest.PcapNG(frame.Ethernet, 9, false, want)), 1},
	} {
		got := read(t, bytes.NewReader(tt.file))
		if len(got) != len(want) {
			t.Errorf("%s: %d packets, want %d", tt.name, len(got), len(want))
			continue
		}
		for i, p := range got {
			if w := &want[i]; p.Time != w.Time/tt.unit*tt.unit || !bytes.Equal(p.Data, w.Data) || p.Len != w.Len || p.Link != frame.Ethernet {
				t.Errorf("%s: packet %d is %d bytes of %d at %d, want %d of %d at %d", tt.name, i, len(p.Data), p.Len, p.Time, len(w.Data), w.Len, w.Time)
				break
			}
		}
	}
	for _, bad := range []string{"", "abc", "not a capture", "\x1f\x8bnot gzip", "\x28\xb5\x2f\xfdnot zstd"} {
		if _, err := frame.NewSource(bytes.NewReader([]byte(bad))); err == nil {
			t.Errorf("%q is taken for a capture", bad)
		}
	}
}

func TestCutFile(t *testing.T) {
	whole := pcaptest.Pcap(frame.Ethernet, true, false, sample())
	m := frame.FromSource(must(frame.NewSource(bytes.NewReader(whole[:len(whole)-7]))), frame.DefaultReorder)
	n := 0
	for p := new(frame.Packet); m.Next(p) == nil; n++ {
	}
	if n != len(sample())-1 || len(m.Problems) != 1 || !errors.Is(m.Problems[0], io.ErrUnexpectedEOF) {
		t.Errorf("%d packets, problems %v", n, m.Problems)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Packets spread over files come back in order, whatever the order of files;
// those out of order within a file as well, but for the first.
func TestMerge(t *testing.T) {
	all := sample()
	for i := range 500 {
		p := all[0]
		p.Time = epoch + int64(i)*3e5
		all = append(all, p)
	}
	r := rand.New(rand.NewPCG(1, 1))
	slices.SortStableFunc(all, func(a, b pcaptest.Packet) int { return int(a.Time - b.Time) })
	parts := make([][]pcaptest.Packet, 4)
	for _, p := range all {
		i := r.IntN(len(parts))
		parts[i] = append(parts[i], p)
	}
	dir := t.TempDir()
	var names []string
	for i, p := range parts {
		name := filepath.Join(dir, string(rune('d'-i)))
		if err := os.WriteFile(name, pcaptest.Pcap(frame.Ethernet, true, false, p), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	m, err := frame.OpenAll(names, frame.DefaultReorder)
	if err != nil {
		t.Fatal(err)
	}
	times := drain(m)
	if len(times) != len(all) || !slices.IsSorted(times) || m.Late != 0 {
		t.Errorf("%d of %d packets, sorted %t, %d late", len(times), len(all), slices.IsSorted(times), m.Late)
	}
	m = frame.FromSource(pcaptest.Source(pcaptest.Shuffle(all, 0.05, 20, r)), frame.DefaultReorder)
	times = drain(m)
	back := 0
	for i := 1; i < len(times); i++ {
		if times[i] < times[i-1] {
			back++
		}
	}
	if len(times) != len(all) || m.Late != 1 || back != 1 {
		t.Errorf("shuffled: %d of %d packets, %d late, %d times back", len(times), len(all), m.Late, back)
	}
}

func drain(m *frame.Merged) (times []int64) {
	var p frame.Packet
	for m.Next(&p) == nil {
		times = append(times, p.Time)
	}
	return times
}

var (
	src4 = [4]byte{10, 0, 0, 1}
	dst4 = [4]byte{10, 0, 0, 2}
	src6 = [16]byte{0x20, 1, 15: 1}
	dst6 = [16]byte{0x20, 1, 15: 2}
)

func TestEncapsulations(t *testing.T) {
	tcp := pcaptest.TCP(4000, 8000, 77, 88, 0x18, []byte("hi"))
	ip4 := pcaptest.IPv4(src4, dst4, 9, 6, tcp)
	ip6 := pcaptest.IPv6(src6, dst6, 6, tcp)
	eth := pcaptest.Ethernet(0x0800, ip4)
	cat := func(parts ...any) (b []byte) {
		for _, p := range parts {
			switch p := p.(type) {
			case []byte:
				b = append(b, p...)
			case string:
				b = append(b, p...)
			}
		}
		return b
	}
	outer := func(proto byte, p []byte) []byte {
		return pcaptest.Ethernet(0x0800, pcaptest.IPv4(dst4, src4, 1, proto, p))
	}
	udp := func(port uint16, p []byte) []byte { return outer(17, pcaptest.UDP(5555, port, p)) }
	geneve := make([]byte, 8+252)
	geneve[0], geneve[2], geneve[3] = 63, 0x65, 0x58
	for _, tt := range []struct {
		name string
		link frame.Link
		data []byte
		want frame.Verdict
	}{
		{"Ethernet, padded", frame.Ethernet, eth, frame.TCP},
		{"IPv6", frame.Ethernet, pcaptest.Ethernet(0x86dd, ip6), frame.TCP},
		{"VLAN", frame.Ethernet, cat(eth[:12], "\x81\x00\x00\x05", eth[12:]), frame.TCP},
		{"QinQ", frame.Ethernet, cat(eth[:12], "\x88\xa8\x00\x05\x81\x00\x00\x06", eth[12:]), frame.TCP},
		{"MPLS", frame.Ethernet, cat(eth[:12], "\x88\x47\x00\x01\x00\x40\x00\x01\x01\x40", ip4), frame.TCP},
		{"SLL", frame.SLL, cat("\x00\x00\x03\x04\x00\x06abcdef\x00\x00\x08\x00", ip4), frame.TCP},
		{"SLL2", frame.SLL2, cat("\x08\x00\x00\x00\x00\x00\x00\x01\x03\x04\x00\x06abcdefgh", ip4), frame.TCP},
		{"raw", frame.Raw, ip4, frame.TCP},
		{"raw IPv6", frame.Raw, ip6, frame.TCP},
		{"loopback of BSD", frame.Null, cat("\x02\x00\x00\x00", ip4), frame.TCP},
		{"loopback of BSD, IPv6", frame.Null, cat("\x1e\x00\x00\x00", ip6), frame.TCP},
		{"loopback of OpenBSD", frame.Loop, cat("\x00\x00\x00\x02", ip4), frame.TCP},
		{"cooked", frame.Cooked(0x0800), ip4, frame.TCP},
		{"cooked, VLAN", frame.Cooked(0x8100), cat("\x00\x05\x08\x00", ip4), frame.TCP},
		{"extension headers", frame.Raw, pcaptest.IPv6(src6, dst6, 0, cat("\x3c\x00\x01\x04\x00\x00\x00\x00", "\x06\x00\x01\x04\x00\x00\x00\x00", tcp)), frame.TCP},
		{"atomic fragment", frame.Raw, pcaptest.IPv6(src6, dst6, 44, cat("\x06\x00\x00\x00\x00\x00\x00\x09", tcp)), frame.TCP},
		{"VXLAN", frame.Ethernet, udp(4789, cat("\x08\x00\x00\x00\x00\x00\x07\x00", eth)), frame.TCP},
		{"VXLAN of Linux", frame.Ethernet, udp(8472, cat("\x08\x00\x00\x00\x00\x00\x07\x00", eth)), frame.TCP},
		{"Geneve", frame.Ethernet, udp(6081, cat("\x00\x00\x65\x58\x00\x00\x07\x00", eth)), frame.TCP},
		{"Geneve, IP, all options", frame.Ethernet, udp(6081, cat(geneve, eth)), frame.TCP},
		{"GRE, IP", frame.Ethernet, outer(47, cat("\x00\x00\x08\x00", ip4)), frame.TCP},
		{"GRE, key and checksum", frame.Ethernet, outer(47, cat("\xa0\x00\x86\xdd\x00\x00\x00\x00\x00\x00\x00\x01", ip6)), frame.TCP},
		{"GRE, Ethernet", frame.Ethernet, outer(47, cat("\x00\x00\x65\x58", eth)), frame.TCP},
		{"ERSPAN I", frame.Ethernet, outer(47, cat("\x00\x00\x88\xbe", eth)), frame.TCP},
		{"ERSPAN II", frame.Ethernet, outer(47, cat("\x10\x00\x88\xbe\x00\x00\x00\x01", "\x10\x05\x00\x0a\x00\x00\x00\x01", eth)), frame.TCP},
		{"ERSPAN III", frame.Ethernet, outer(47, cat("\x10\x00\x22\xeb\x00\x00\x00\x01", "\x20\x05\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00", eth)), frame.TCP},
		{"ERSPAN III with a subheader", frame.Ethernet, outer(47, cat("\x10\x00\x22\xeb\x00\x00\x00\x01", "\x20\x05\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x01", "12345678", eth)), frame.TCP},
		{"IP in IP", frame.Ethernet, outer(4, ip4), frame.TCP},
		{"VXLAN in GRE", frame.Ethernet, outer(47, cat("\x00\x00\x65\x58", udp(4789, cat("\x08\x00\x00\x00\x00\x00\x07\x00", eth)))), frame.TCP},
		{"ARP", frame.Ethernet, pcaptest.Ethernet(0x0806, make([]byte, 28)), frame.NotIP},
		{"unknown link", 147, ip4, frame.NotIP},
		{"UDP", frame.Ethernet, udp(53, []byte("query")), frame.NotTCP},
		{"ICMP", frame.Ethernet, outer(1, []byte("ping....")), frame.NotTCP},
		{"cut in the IP header", frame.Raw, ip4[:19], frame.Truncated},
		{"cut in the TCP header", frame.Raw, ip4[:39], frame.Truncated},
		{"IP header of 4 bytes", frame.Raw, cat("\x41", ip4[1:]), frame.Malformed},
		{"total length below the header", frame.Raw, cat(ip4[:2], "\x00\x05", ip4[4:]), frame.Malformed},
		{"TCP header of 8 bytes", frame.Raw, cat(ip4[:32], "\x20", ip4[33:]), frame.Malformed},
	} {
		var d frame.Decoder
		var s reassembly.Segment
		got := d.Decode(&frame.Packet{Time: 5, Data: tt.data, Len: len(tt.data), Link: tt.link}, &s)
		if got != tt.want {
			t.Errorf("%s: verdict %d, want %d", tt.name, got, tt.want)
		}
		if got == frame.TCP && (string(s.Payload) != "hi" || s.Seq != 77 || s.Ack != 88 || s.Flags != 0x18 || s.Src.Port != 4000 || s.Dst.Port != 8000 || s.Missing != 0 || s.Time != 5) {
			t.Errorf("%s: %+v", tt.name, s)
		}
	}
}

func TestLengths(t *testing.T) {
	tcp := pcaptest.TCP(1, 2, 3, 4, 0x10, bytes.Repeat([]byte("x"), 100))
	ip := pcaptest.IPv4(src4, dst4, 1, 6, tcp)
	decode := func(b []byte) (s reassembly.Segment, d frame.Decoder) {
		if v := d.Decode(&frame.Packet{Data: b, Len: len(ip), Link: frame.Raw}, &s); v != frame.TCP {
			t.Fatalf("verdict %d", v)
		}
		return s, d
	}
	if s, d := decode(ip[:len(ip)-30]); len(s.Payload) != 70 || s.Missing != 30 || d.CutPayloads != 1 {
		t.Errorf("cut by the snap length: %d bytes and %d missing", len(s.Payload), s.Missing)
	}
	offloaded := bytes.Clone(ip)
	offloaded[2], offloaded[3] = 0, 0
	if s, _ := decode(offloaded); len(s.Payload) != 100 || s.Missing != 0 {
		t.Errorf("total length 0: %d bytes and %d missing", len(s.Payload), s.Missing)
	}
}

func TestFragments(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 100)
	tcp := pcaptest.TCP(1, 2, 3, 4, 0x10, payload)
	piece := func(from, to int, v6 bool) []byte {
		more := to < len(tcp)
		if v6 {
			off := uint16(from)
			if more {
				off |= 1
			}
			h := append([]byte{6, 0}, binary.BigEndian.AppendUint16(nil, off)...)
			return pcaptest.IPv6(src6, dst6, 44, append(append(h, 0, 0, 0, 7), tcp[from:to]...))
		}
		b := pcaptest.IPv4(src4, dst4, 42, 6, tcp[from:to])
		off := uint16(from / 8)
		if more {
			off |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], off)
		return b
	}
	cuts := []int{0, 800, 1200, len(tcp)}
	for _, v6 := range []bool{false, true} {
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 1, 0, 2}, {1, 2, 0}} {
			var d frame.Decoder
			var s reassembly.Segment
			var got [][]byte
			for _, i := range order {
				b := piece(cuts[i], cuts[i+1], v6)
				if d.Decode(&frame.Packet{Data: b, Len: len(b), Link: frame.Raw}, &s) == frame.TCP {
					got = append(got, bytes.Clone(s.Payload))
				}
			}
			if len(got) != 1 || !bytes.Equal(got[0], payload) || d.Reassembled != 1 {
				t.Errorf("IPv6 %t, order %v: %d segments", v6, order, len(got))
			}
			d.Close()
			if want := int64(len(order) - 3); d.FragmentsDropped != want || d.Fragments != int64(len(order)-1) {
				t.Errorf("IPv6 %t, order %v: %d fragments, %d dropped", v6, order, d.Fragments, d.FragmentsDropped)
			}
		}
	}
	// Overlapping pieces are an attack; the packet is worth nothing.
	var d frame.Decoder
	var s reassembly.Segment
	for _, b := range [][]byte{piece(0, 800, false), piece(400, 1200, false), piece(800, len(tcp), false)} {
		if d.Decode(&frame.Packet{Data: b, Len: len(b), Link: frame.Raw}, &s) == frame.TCP {
			t.Error("a packet of overlapping fragments")
		}
	}
}

// FuzzSource checks that no input makes the readers panic, take unbounded
// memory or go on for ever.
func FuzzSource(f *testing.F) {
	p := sample()
	f.Add(pcaptest.Pcap(frame.Ethernet, false, false, p[:3]))
	f.Add(pcaptest.Pcap(frame.Ethernet, true, true, p[:3]))
	f.Add(pcaptest.PcapNG(frame.SLL2, 9, false, p[:3]))
	f.Add(pcaptest.PcapNG(frame.Ethernet, 6, true, p[:3]))
	f.Fuzz(func(t *testing.T, b []byte) {
		src, err := frame.NewSource(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer src.Close()
		m := frame.FromSource(src, frame.DefaultReorder)
		total := 0
		var p frame.Packet
		for m.Next(&p) == nil {
			if len(p.Data) > frame.MaxPacket {
				t.Fatalf("packet of %d bytes", len(p.Data))
			}
			total += 16 + len(p.Data)
			if packed := b[0] == 0x1f || b[0] == 0x28; !packed && total > len(b) {
				t.Fatalf("%d bytes of packets from a file of %d", total, len(b))
			}
		}
	})
}

// FuzzDecode checks that no packet makes the decoder panic or read outside of
// it, and that each gets one verdict.
func FuzzDecode(f *testing.F) {
	for _, p := range sample()[:4] {
		f.Add(uint32(frame.Ethernet), p.Data)
		f.Add(uint32(frame.Raw), p.Data[14:])
	}
	f.Add(uint32(frame.Ethernet), pcaptest.Ethernet(0x0800, pcaptest.IPv4(src4, dst4, 1, 47, append([]byte("\x10\x00\x88\xbe\x00\x00\x00\x01\x10\x05\x00\x0a\x00\x00\x00\x01"), sample()[0].Data...))))
	f.Add(uint32(frame.Ethernet), pcaptest.Ethernet(0x0800, pcaptest.IPv4(src4, dst4, 1, 17, pcaptest.UDP(1, 4789, append([]byte("\x08\x00\x00\x00\x00\x00\x07\x00"), sample()[0].Data...)))))
	f.Fuzz(func(t *testing.T, link uint32, b []byte) {
		var d frame.Decoder
		for i := range 3 {
			var s reassembly.Segment
			if d.Decode(&frame.Packet{Time: int64(i), Data: b, Len: len(b), Link: frame.Link(link)}, &s) == frame.TCP && len(s.Payload) > len(b) && d.Reassembled == 0 {
				t.Fatalf("payload of %d bytes from a packet of %d", len(s.Payload), len(b))
			}
		}
		d.Close()
		if c := d.Counters; c.TCP+c.NotIP+c.NotTCP+c.Fragments+c.Truncated+c.Malformed != 3 {
			t.Fatalf("%+v", c)
		}
	})
}
