package frame_test

import (
	"bytes"
	"io"
	"testing"

	"reprise/capture/packet/frame"
	"reprise/capture/packet/pcaptest"
	"reprise/capture/packet/reassembly"
)

// An event of 224 bytes over Ethernet and IPv4.
func BenchmarkDecode(b *testing.B) {
	var n pcaptest.Net
	n.Dial().Send(pcaptest.Server, epoch, make([]byte, 224))
	p := n.Packets[0].Packet
	var d frame.Decoder
	var s reassembly.Segment
	for b.Loop() {
		if d.Decode(&p, &s) != frame.TCP || len(s.Payload) != 224 {
			b.Fatal("not decoded")
		}
	}
}

func BenchmarkRead(b *testing.B) {
	var n pcaptest.Net
	c := n.Dial()
	for i := range 10000 {
		c.Send(pcaptest.Server, epoch+int64(i)*1e6, make([]byte, 224))
	}
	for _, f := range []struct {
		name string
		file []byte
	}{{"pcap", pcaptest.Pcap(frame.Ethernet, true, false, n.Packets)}, {"pcapng", pcaptest.PcapNG(frame.Ethernet, 9, false, n.Packets)}} {
		b.Run(f.name, func(b *testing.B) {
			b.SetBytes(int64(len(f.file)))
			for b.Loop() {
				src, err := frame.NewSource(bytes.NewReader(f.file))
				if err != nil {
					b.Fatal(err)
				}
				var p frame.Packet
				for err == nil {
					err = src.Next(&p)
				}
				if err != io.EOF {
					b.Fatal(err)
				}
			}
		})
	}
}
