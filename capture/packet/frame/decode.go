package frame

import (
	"encoding/binary"

	"reprise/capture/packet/reassembly"
)

// A Verdict is what a packet turned out to be. Each packet gets exactly one.
type Verdict uint8

const (
	TCP       Verdict = iota // a TCP segment
	NotIP                    // ARP, LLDP, an unknown link type, ...
	NotTCP                   // UDP, ICMP, ...
	Fragment                 // a piece of an IP packet that is not complete yet, or never was
	Truncated                // the snap length cut a header off
	Malformed                // headers that contradict themselves
)

// Counters say what became of packets; the first six add up to Packets.
type Counters struct {
	Packets   int64 `json:"packets"`
	TCP       int64 `json:"tcp"`
	NotIP     int64 `json:"not_ip"`
	NotTCP    int64 `json:"not_tcp"`
	Fragments int64 `json:"fragments"`
	Truncated int64 `json:"truncated_headers"`
	Malformed int64 `json:"malformed"`

	Tunnelled        int64 `json:"tunnelled"`          // came in a tunnel
	CutPayloads      int64 `json:"cut_payloads"`       // TCP segments whose payload the snap length cut
	FragmentsDropped int64 `json:"fragments_dropped"`  // of Fragments, those whose packet never became complete
	Reassembled      int64 `json:"fragments_complete"` // packets put together from fragments
}

// maxNesting bounds tunnels in tunnels.
const maxNesting = 6

// EtherTypes and protocol numbers (IANA).
const (
	etherIPv4    = 0x0800
	etherIPv6    = 0x86dd
	etherVLAN    = 0x8100
	etherQinQ    = 0x88a8
	etherQinQOld = 0x9100
	etherMPLS    = 0x8847
	etherBridged = 0x6558
	etherERSPAN2 = 0x88be
	etherERSPAN3 = 0x22eb

	protoIPIP = 4
	protoTCP  = 6
	protoUDP  = 17
	protoIPv6 = 41
	protoGRE  = 47

	portVXLAN      = 4789
	portVXLANLinux = 8472
	portGeneve     = 6081
)

// A Decoder takes packets apart. It is used by one goroutine.
type Decoder struct {
	Counters
	tunnels tunneller
	frags   fragments
}

// Decode takes p apart. For TCP it fills s, whose Payload lies in p or, after
// fragments, in memory of the decoder that is valid until the next call.
func (d *Decoder) Decode(p *Packet, s *reassembly.Segment) Verdict {
	d.Packets++
	s.Time = p.Time
	v := d.link(p.Link, p.Data, s)
	switch v {
	case TCP:
		d.TCP++
		if s.Missing > 0 {
			d.CutPayloads++
		}
	case NotIP:
		d.NotIP++
	case NotTCP:
		d.NotTCP++
	case Fragment:
		d.Fragments++
	case Truncated:
		d.Truncated++
	case Malformed:
		d.Malformed++
	}
	return v
}

// Close gives up fragments that wait for others.
func (d *Decoder) Close() {
	d.frags.dropAll()
	d.FragmentsDropped = d.frags.dropped
}

func (d *Decoder) link(l Link, b []byte, s *reassembly.Segment) Verdict {
	switch l {
	case Ethernet:
		return d.ethernet(b, s, 0)
	case cooked | etherIPv4:
		return d.ipv4(b, s, 0)
	case SLL:
		if len(b) < 16 {
			return Truncated
		}
		return d.ether(binary.BigEndian.Uint16(b[14:]), b[16:], s, 0)
	case SLL2, sll2Short:
		if len(b) < 20 {
			return Truncated
		}
		return d.ether(binary.BigEndian.Uint16(b), b[20:], s, 0)
	case Raw, rawBSD, rawOpen, IPv4, IPv6:
		return d.ip(b, s, 0)
	case Null, Loop:
		// The address family in front has three values for IPv6 and two byte
		// orders; the version field of IP says the same.
		if len(b) < 4 {
			return Truncated
		}
		return d.ip(b[4:], s, 0)
	}
	if l&^0xffff == cooked {
		return d.ether(uint16(l), b, s, 0)
	}
	return NotIP
}

func (d *Decoder) ethernet(b []byte, s *reassembly.Segment, depth int) Verdict {
	if len(b) < 14 {
		return Truncated
	}
	return d.ether(binary.BigEndian.Uint16(b[12:]), b[14:], s, depth)
}

// ether takes what an EtherType says is next.
func (d *Decoder) ether(typ uint16, b []byte, s *reassembly.Segment, depth int) Verdict {
	for {
		switch typ {
		case etherIPv4:
			return d.ipv4(b, s, depth)
		case etherIPv6:
			return d.ipv6(b, s, depth)
		case etherVLAN, etherQinQ, etherQinQOld:
			if len(b) < 4 {
				return Truncated
			}
			typ, b = binary.BigEndian.Uint16(b[2:]), b[4:]
		case etherMPLS:
			for bottom := false; !bottom; b = b[4:] {
				if len(b) < 4 {
					return Truncated
				}
				bottom = b[2]&1 != 0
			}
			return d.ip(b, s, depth)
		default:
			return NotIP
		}
	}
}

// ip tells the version from the first bits.
func (d *Decoder) ip(b []byte, s *reassembly.Segment, depth int) Verdict {
	if len(b) == 0 {
		return Truncated
	}
	switch b[0] >> 4 {
	case 4:
		return d.ipv4(b, s, depth)
	case 6:
		return d.ipv6(b, s, depth)
	}
	return NotIP
}

func (d *Decoder) ipv4(b []byte, s *reassembly.Segment, depth int) Verdict {
	if len(b) < 20 {
		return Truncated
	}
	head := int(b[0]&0xf) * 4
	if b[0]>>4 != 4 || head < 20 {
		return Malformed
	}
	// What lies beyond the total length is padding of a short Ethernet frame.
	// Segmentation offload may leave the length 0: then what was captured counts.
	total, missing := int(binary.BigEndian.Uint16(b[2:])), 0
	switch {
	case total == 0:
	case total < head:
		return Malformed
	case total < len(b):
		b = b[:total]
	default:
		missing = total - len(b)
	}
	if len(b) < head {
		return Truncated
	}
	s.ID = binary.BigEndian.Uint16(b[4:])
	setIPv4(&s.Src.Addr, b[12:16])
	setIPv4(&s.Dst.Addr, b[16:20])
	proto := b[9]
	if frag := binary.BigEndian.Uint16(b[6:]); frag&0x3fff != 0 {
		k := fragKey{src: s.Src.Addr, dst: s.Dst.Addr, id: uint32(s.ID), proto: proto}
		return d.fragment(k, int(frag&0x1fff)*8, frag&0x2000 != 0, b[head:], missing, s, depth)
	}
	return d.transport(proto, b[head:], missing, s, depth)
}

// setIPv4 writes the IPv6-mapped form.
func setIPv4(a *[16]byte, b []byte) {
	*a = [16]byte{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}

func (d *Decoder) ipv6(b []byte, s *reassembly.Segment, depth int) Verdict {
	if len(b) < 40 {
		return Truncated
	}
	if b[0]>>4 != 6 {
		return Malformed
	}
	s.ID = 0
	copy(s.Src.Addr[:], b[8:24])
	copy(s.Dst.Addr[:], b[24:40])
	next, missing := b[6], 0
	size := int(binary.BigEndian.Uint16(b[4:]))
	b = b[40:]
	switch {
	case size == 0: // a jumbogram, or segmentation offload
	case size < len(b):
		b = b[:size]
	default:
		missing = size - len(b)
	}
	// Extension headers (RFC 8200, section 4). At most one of each kind makes
	// sense.
	for range 8 {
		var n int
		switch next {
		case 0, 43, 60, 135, 139, 140: // hop by hop, routing, destination, mobility, HIP, shim6
			if len(b) < 8 {
				return Truncated
			}
			n = int(b[1])*8 + 8
		case 51: // authentication
			if len(b) < 8 {
				return Truncated
			}
			n = int(b[1])*4 + 8
		case 44: // fragment
			if len(b) < 8 {
				return Truncated
			}
			frag := binary.BigEndian.Uint16(b[2:])
			k := fragKey{src: s.Src.Addr, dst: s.Dst.Addr, id: binary.BigEndian.Uint32(b[4:]), proto: b[0], v6: true}
			if frag&^6 == 0 { // an atomic fragment (RFC 6946) is whole
				next, b = b[0], b[8:]
				continue
			}
			return d.fragment(k, int(frag&^7), frag&1 != 0, b[8:], missing, s, depth)
		default:
			return d.transport(next, b, missing, s, depth)
		}
		if len(b) < n {
			return Truncated
		}
		next, b = b[0], b[n:]
	}
	return Malformed
}

// transport takes the payload of an IP packet.
func (d *Decoder) transport(proto uint8, b []byte, missing int, s *reassembly.Segment, depth int) Verdict {
	if proto == protoTCP {
		return tcp(b, missing, s)
	}
	if depth >= maxNesting {
		return NotTCP
	}
	v := NotTCP
	switch proto {
	case protoUDP:
		v = d.udp(b, s, depth+1)
	case protoGRE:
		v = d.gre(b, s, depth+1)
	case protoIPIP, protoIPv6:
		v = d.ip(b, s, depth+1)
	default:
		return NotTCP
	}
	if v == TCP && depth == 0 {
		d.Tunnelled++
	}
	return v
}

// tcp fills s from a TCP header.
func tcp(b []byte, missing int, s *reassembly.Segment) Verdict {
	if len(b) < 20 {
		if missing > 0 {
			return Truncated
		}
		return Malformed
	}
	head := int(b[12]>>4) * 4
	if head < 20 {
		return Malformed
	}
	if len(b) < head {
		if missing > 0 {
			return Truncated
		}
		return Malformed
	}
	s.Src.Port = binary.BigEndian.Uint16(b)
	s.Dst.Port = binary.BigEndian.Uint16(b[2:])
	s.Seq = binary.BigEndian.Uint32(b[4:])
	s.Ack = binary.BigEndian.Uint32(b[8:])
	s.Flags = b[13]
	s.Payload = b[head:]
	s.Missing = missing
	return TCP
}
