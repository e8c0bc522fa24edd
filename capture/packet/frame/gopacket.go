package frame

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	// The one place where gopacket is imported. The maintained continuation,
	// github.com/gopacket/gopacket, has the same interface: change the prefix of
	// these three lines.
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// errLibrary stands for a panic inside gopacket, which does not check all that
// it reads.
var errLibrary = errors.New("damaged: not readable by the packet library")

// pcapSource is a pcap file.
type pcapSource struct {
	r    *pcapgo.Reader
	link Link
}

func newPcap(r *bufio.Reader) (Source, error) {
	p, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, err
	}
	// Some writers state a snap length and do not keep to it; and it is what
	// the library would allocate.
	p.SetSnaplen(MaxPacket)
	return &pcapSource{p, Link(p.LinkType())}, nil
}

func (s *pcapSource) Next(p *Packet) error {
	data, ci, err := s.r.ZeroCopyReadPacketData()
	if err != nil {
		return err
	}
	p.Time, p.Data, p.Len, p.Link = ci.Timestamp.UnixNano(), data, ci.Length, s.link
	return nil
}

func (s *pcapSource) Close() error { return nil }

// ngSource is a pcapng file, behind an ngGuard.
type ngSource struct {
	r     *pcapgo.NgReader
	guard *ngGuard
}

func newNg(r *bufio.Reader) (s Source, err error) {
	defer contain(&err)
	guard := &ngGuard{r: r}
	opts := pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true}
	ng, err := pcapgo.NewNgReader(bufio.NewReaderSize(guard, 256<<10), opts)
	if err != nil {
		return nil, guard.explain(err)
	}
	return &ngSource{ng, guard}, nil
}

func (s *ngSource) Next(p *Packet) (err error) {
	defer contain(&err)
	data, ci, err := s.r.ZeroCopyReadPacketData()
	if err != nil {
		return s.guard.explain(err)
	}
	p.Time, p.Data, p.Len, p.Link = ci.Timestamp.UnixNano(), data, ci.Length, Ethernet
	if ci.Timestamp.IsZero() {
		p.Time = 0 // a simple packet block has no time
	}
	if len(ci.AncillaryData) > 0 {
		if l, ok := ci.AncillaryData[0].(layers.LinkType); ok {
			p.Link = Link(l)
		}
	}
	return nil
}

func (s *ngSource) Close() error { return nil }

// contain turns a panic of the library into an error.
func contain(err *error) {
	if v := recover(); v != nil {
		if e, ok := v.(error); ok && errors.Is(e, io.ErrUnexpectedEOF) {
			*err = e
			return
		}
		*err = errLibrary
	}
}

// A tunneller takes off tunnel headers. It is not safe for concurrent use.
type tunneller struct {
	vxlan  layers.VXLAN
	erspan layers.ERSPANII
}

// vxlanPayload is the Ethernet frame in a VXLAN packet.
func (t *tunneller) vxlanPayload(b []byte) (inner []byte, err error) {
	if err := t.vxlan.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return nil, err
	}
	if !t.vxlan.ValidIDFlag {
		return nil, errors.New("no VXLAN identifier")
	}
	return t.vxlan.Payload, nil
}

// grePayload is what a GRE packet carries: the protocol and whether there was a
// sequence number, which tells the types of ERSPAN apart.
func (t *tunneller) grePayload(b []byte) (proto uint16, seq bool, inner []byte, err error) {
	defer contain(&err) // the library checks no length here
	var gre layers.GRE
	if err := gre.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return 0, false, nil, err
	}
	if gre.Version != 0 {
		return 0, false, nil, fmt.Errorf("GRE version %d", gre.Version)
	}
	return uint16(gre.Protocol), gre.SeqPresent, gre.Payload, nil
}

// erspanPayload is the Ethernet frame in an ERSPAN packet of type II.
func (t *tunneller) erspanPayload(b []byte) (inner []byte, err error) {
	if len(b) < 8 {
		return nil, io.ErrUnexpectedEOF
	}
	if err := t.erspan.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return nil, err
	}
	return t.erspan.Payload, nil
}
