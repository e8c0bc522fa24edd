// Package frame reads captured packets from files and takes off what is wrapped
// around TCP: link layers, VLAN tags, IPv4 and IPv6 with extension headers and
// fragments, and the tunnels in which clouds and switches mirror traffic (VXLAN,
// Geneve, GRE, ERSPAN).
//
// The common encapsulations are decoded by hand in decode.go, since a capture
// spends its time there; file formats and the rarer tunnels go through gopacket,
// whose import is in gopacket.go and nowhere else.
package frame

// A Link says what a packet begins with: a LINKTYPE_ value of
// https://www.tcpdump.org/linktypes.html.
type Link uint32

const (
	Null     Link = 0 // BSD loopback, host byte order
	Ethernet Link = 1
	rawBSD   Link = 12
	rawOpen  Link = 14
	// sll2Short is what is left of SLL2 in the 8 bits that gopacket v1.1.19 has
	// for a link type. No registered type has this value.
	sll2Short Link = 20
	Raw       Link = 101
	Loop      Link = 108 // OpenBSD loopback, network byte order
	SLL       Link = 113 // tcpdump -i any
	IPv4      Link = 228
	IPv6      Link = 229
	SLL2      Link = 276 // tcpdump -i any, since 2021
)

// cooked marks links that are not in a file: what follows the link layer, whose
// EtherType is in the low 16 bits.
const cooked Link = 1 << 16

// Cooked is the link of a packet without its link layer, of an EtherType.
func Cooked(etherType uint16) Link { return cooked | Link(etherType) }

// MaxPacket bounds a packet. Segmentation offload makes packets of up to 512 KiB.
const MaxPacket = 1 << 20

// A Packet is one captured packet. Data is valid until the next one is read.
type Packet struct {
	Time int64 // nanoseconds since the epoch
	Data []byte
	Len  int // length on the wire: more than Data has if the snap length cut it
	Link Link
}

// A Source yields packets, then io.EOF. Other errors say what is wrong with the
// input; packets read until then are good.
type Source interface {
	Next(*Packet) error
	Close() error
}
