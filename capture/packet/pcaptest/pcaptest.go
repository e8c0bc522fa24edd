// Package pcaptest makes packets for tests: it wraps byte streams in TCP
// segments with times and acknowledgements, as a host would send them, and
// writes capture files.
package pcaptest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"

	"reprise/capture/packet/frame"
)

// Directions.
const (
	Client = 0
	Server = 1
)

// TCP flags.
const (
	FIN = 1
	SYN = 2
	RST = 4
	PSH = 8
	ACK = 16
)

// A Packet is a frame with what a test may want to know of it.
type Packet struct {
	frame.Packet
	Conn  int // number of the connection
	Dir   int
	Bytes int // payload
}

// A Net collects packets.
type Net struct {
	Packets []Packet
	MSS     int // largest payload, default 1448
	conns   int
}

// A Conn is a connection.
type Conn struct {
	net   *Net
	n     int
	seq   [2]uint32 // next to send
	acked [2]uint32 // what this side acknowledges of the other
	id    [2]uint16
	ip    [2][4]byte
	port  [2]uint16
	// NoAcks leaves out acknowledgements without data.
	NoAcks bool
}

// Dial makes a connection to port 8000 with initial sequence numbers that
// depend on its number, so that many wrap. It sends nothing.
func (n *Net) Dial() *Conn {
	if n.MSS == 0 {
		n.MSS = 1448
	}
	i := n.conns
	n.conns++
	r := rand.New(rand.NewPCG(uint64(i), 1))
	c := &Conn{net: n, n: i, seq: [2]uint32{r.Uint32(), r.Uint32()}}
	if i%4 == 0 {
		c.seq = [2]uint32{-uint32(r.IntN(5000)), -uint32(r.IntN(5000))}
	}
	c.ip = [2][4]byte{{10, byte(i >> 14), byte(i >> 6), byte(i<<2) | 1}, {10, 255, 0, 1}}
	c.port = [2]uint16{uint16(20000 + i%40000), 8000}
	return c
}

// Open makes the three-way handshake.
func (c *Conn) Open(t int64) {
	c.send(Client, t, SYN, nil)
	c.seq[Client]++
	c.acked[Server] = c.seq[Client]
	c.send(Server, t+10e3, SYN|ACK, nil)
	c.seq[Server]++
	c.acked[Client] = c.seq[Server]
	c.send(Client, t+20e3, ACK, nil)
}

// Send sends p from one side in as many segments as it takes, a microsecond
// apart, and the other side's acknowledgement.
func (c *Conn) Send(dir int, t int64, p []byte) {
	for len(p) > 0 {
		n := min(len(p), c.net.MSS)
		c.send(dir, t, ACK|PSH, p[:n])
		c.seq[dir] += uint32(n)
		p = p[n:]
		t += 1e3
	}
	c.acked[1-dir] = c.seq[dir]
	if !c.NoAcks {
		c.send(1-dir, t+5e3, ACK, nil)
	}
}

// Fin ends a direction.
func (c *Conn) Fin(dir int, t int64) {
	c.send(dir, t, FIN|ACK, nil)
	c.seq[dir]++
	c.acked[1-dir] = c.seq[dir]
	c.send(1-dir, t+5e3, ACK, nil)
}

// Close ends both directions, the given one first.
func (c *Conn) Close(dir int, t int64) {
	c.Fin(dir, t)
	c.Fin(1-dir, t+20e3)
}

func (c *Conn) send(dir int, t int64, flags byte, p []byte) {
	c.id[dir]++
	c.net.Packets = append(c.net.Packets, Packet{
		Packet: frame.Packet{Time: t, Link: frame.Ethernet, Data: Ethernet(0x0800, IPv4(c.ip[dir], c.ip[1-dir], c.id[dir], 6,
			TCP(c.port[dir], c.port[1-dir], c.seq[dir], c.acked[dir], flags, p)))},
		Conn: c.n, Dir: dir, Bytes: len(p),
	})
	last := &c.net.Packets[len(c.net.Packets)-1]
	last.Len = len(last.Data)
}

// Sort puts the packets in the order of their times.
func (n *Net) Sort() { sortPackets(n.Packets) }

// TCP is a segment with a timestamp option, as Linux sends it.
func TCP(src, dst uint16, seq, ack uint32, flags byte, p []byte) []byte {
	b := make([]byte, 32, 32+len(p))
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint32(b[4:], seq)
	if flags&ACK != 0 {
		binary.BigEndian.PutUint32(b[8:], ack)
	}
	b[12], b[13] = 8<<4, flags
	binary.BigEndian.PutUint16(b[14:], 512)
	copy(b[20:], []byte{1, 1, 8, 10})
	return append(b, p...)
}

// IPv4 wraps p.
func IPv4(src, dst [4]byte, id uint16, proto byte, p []byte) []byte {
	b := make([]byte, 20, 20+len(p))
	b[0] = 0x45
	if total := 20 + len(p); total <= 0xffff { // else as segmentation offload leaves it
		binary.BigEndian.PutUint16(b[2:], uint16(total))
	}
	binary.BigEndian.PutUint16(b[4:], id)
	b[6] = 0x40
	b[8], b[9] = 64, proto
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	return append(b, p...)
}

// IPv6 wraps p; next is the protocol.
func IPv6(src, dst [16]byte, next byte, p []byte) []byte {
	b := make([]byte, 40, 40+len(p))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(p)))
	b[6], b[7] = next, 64
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return append(b, p...)
}

// UDP wraps p.
func UDP(src, dst uint16, p []byte) []byte {
	b := make([]byte, 8, 8+len(p))
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(p)))
	return append(b, p...)
}

// Ethernet wraps p, padded to the 60 bytes that a frame has at least.
func Ethernet(typ uint16, p []byte) []byte {
	b := make([]byte, 14, max(60, 14+len(p)))
	b[0], b[6] = 2, 2
	binary.BigEndian.PutUint16(b[12:], typ)
	b = append(b, p...)
	for len(b) < 60 {
		b = append(b, 0)
	}
	return b
}

// Pcap is a capture file with microseconds, or nanoseconds.
func Pcap(link frame.Link, nano, bigEndian bool, packets []Packet) []byte {
	var order binary.AppendByteOrder = binary.LittleEndian
	if bigEndian {
		order = binary.BigEndian
	}
	magic, unit := uint32(0xa1b2c3d4), int64(1000)
	if nano {
		magic, unit = 0xa1b23c4d, 1
	}
	var b []byte
	b = order.AppendUint32(b, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = order.AppendUint64(b, 0)
	b = order.AppendUint32(b, 262144)
	b = order.AppendUint32(b, uint32(link))
	for i := range packets {
		p := &packets[i]
		b = order.AppendUint32(b, uint32(p.Time/1e9))
		b = order.AppendUint32(b, uint32(p.Time%1e9/unit))
		b = order.AppendUint32(b, uint32(len(p.Data)))
		b = order.AppendUint32(b, uint32(p.Len))
		b = append(b, p.Data...)
	}
	return b
}

// PcapNG is a pcapng file with one interface and the given resolution as a
// power of ten (6, 9).
func PcapNG(link frame.Link, digits byte, bigEndian bool, packets []Packet) []byte {
	var order binary.AppendByteOrder = binary.LittleEndian
	if bigEndian {
		order = binary.BigEndian
	}
	block := func(b []byte, typ uint32, body []byte) []byte {
		body = append(bytes.Clone(body), make([]byte, -len(body)&3)...)
		b = order.AppendUint32(b, typ)
		b = order.AppendUint32(b, uint32(12+len(body)))
		b = append(b, body...)
		return order.AppendUint32(b, uint32(12+len(body)))
	}
	body := order.AppendUint32(nil, 0x1a2b3c4d)
	body = order.AppendUint16(body, 1)
	body = order.AppendUint16(body, 0)
	body = order.AppendUint64(body, 1<<64-1)
	b := block(nil, 0x0a0d0d0a, body)
	body = order.AppendUint16(nil, uint16(link))
	body = order.AppendUint16(body, 0)
	body = order.AppendUint32(body, 0)
	body = order.AppendUint16(body, 9) // if_tsresol
	body = order.AppendUint16(body, 1)
	body = append(body, digits, 0, 0, 0)
	body = order.AppendUint32(body, 0)
	b = block(b, 1, body)
	unit := int64(1)
	for range 9 - digits {
		unit *= 10
	}
	for i := range packets {
		p := &packets[i]
		t := uint64(p.Time / unit)
		body = order.AppendUint32(nil, 0)
		body = order.AppendUint32(body, uint32(t>>32))
		body = order.AppendUint32(body, uint32(t))
		body = order.AppendUint32(body, uint32(len(p.Data)))
		body = order.AppendUint32(body, uint32(p.Len))
		b = block(b, 6, append(body, p.Data...))
	}
	return b
}
