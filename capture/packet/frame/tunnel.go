package frame

import (
	"encoding/binary"

	"reprise/capture/packet/reassembly"
)

// udp looks for a tunnel on its registered port.
func (d *Decoder) udp(b []byte, s *reassembly.Segment, depth int) Verdict {
	if len(b) < 8 {
		return NotTCP
	}
	switch binary.BigEndian.Uint16(b[2:]) {
	case portVXLAN, portVXLANLinux:
		inner, err := d.tunnels.vxlanPayload(b[8:])
		if err != nil {
			return NotTCP
		}
		return d.ethernet(inner, s, depth)
	case portGeneve:
		return d.geneve(b[8:], s, depth)
	}
	return NotTCP
}

// geneve (RFC 8926) is taken apart here and not by gopacket v1.1.19, whose offset
// of 8 bits overflows with 248 bytes of options and more.
func (d *Decoder) geneve(b []byte, s *reassembly.Segment, depth int) Verdict {
	if len(b) < 8 {
		return Truncated
	}
	head := 8 + int(b[0]&0x3f)*4
	if b[0]>>6 != 0 {
		return NotTCP
	}
	if len(b) < head {
		return Truncated
	}
	return d.inner(binary.BigEndian.Uint16(b[2:]), b[head:], s, depth)
}

func (d *Decoder) gre(b []byte, s *reassembly.Segment, depth int) Verdict {
	proto, seq, inner, err := d.tunnels.grePayload(b)
	if err != nil {
		return NotTCP
	}
	switch proto {
	case etherERSPAN2:
		if seq { // type I has neither a sequence number nor a header of its own
			if inner, err = d.tunnels.erspanPayload(inner); err != nil {
				return Truncated
			}
		}
		return d.ethernet(inner, s, depth)
	case etherERSPAN3:
		return d.erspan3(inner, s, depth)
	}
	return d.inner(proto, inner, s, depth)
}

// erspan3 has no layer in gopacket. The header is that of
// draft-foschiano-erspan-03, section 4.3: 12 bytes, and 8 more with the O bit.
func (d *Decoder) erspan3(b []byte, s *reassembly.Segment, depth int) Verdict {
	if len(b) < 12 {
		return Truncated
	}
	head := 12
	if b[11]&1 != 0 {
		head += 8
	}
	if len(b) < head {
		return Truncated
	}
	if frameType := b[10] >> 3 & 0x1f; frameType == 2 {
		return d.ip(b[head:], s, depth)
	}
	return d.ethernet(b[head:], s, depth)
}

// inner takes what the protocol field of a tunnel says is in it.
func (d *Decoder) inner(proto uint16, b []byte, s *reassembly.Segment, depth int) Verdict {
	if proto == etherBridged {
		return d.ethernet(b, s, depth)
	}
	return d.ether(proto, b, s, depth)
}
