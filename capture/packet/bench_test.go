package packet

import (
	"bytes"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"reprise/capture"
	"reprise/capture/packet/frame"
	"reprise/capture/packet/pcaptest"
	"reprise/capture/packet/reassembly"
	"reprise/traceformat"
)

// benchFile is a capture of 1,000 streams that interleave, two answers of 200
// events each.
var benchFile = sync.OnceValues(func() ([]byte, int) {
	var b bytes.Buffer
	n, err := pcaptest.WriteStreams(&b, 1000, 2, 200)
	if err != nil {
		panic(err)
	}
	return b.Bytes(), n
})

type nowhere struct{}

func (nowhere) Append(*traceformat.Row) error { return nil }

// stage reads the file and does what each gives to do with a packet.
func stage(b *testing.B, each func() (packet func(*frame.Packet), done func())) {
	file, n := benchFile()
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	b.ResetTimer()
	began := cpuTime()
	for range b.N {
		src, err := frame.NewSource(bytes.NewReader(file))
		if err != nil {
			b.Fatal(err)
		}
		m := frame.FromSource(src, frame.DefaultReorder)
		do, done := each()
		var p frame.Packet
		for {
			if err := m.Next(&p); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
			do(&p)
		}
		done()
	}
	// On a machine with other work, processor time says more than the clock.
	cpu := cpuTime() - began
	packets := float64(n) * float64(b.N)
	b.ReportMetric(packets/b.Elapsed().Seconds(), "packets/s")
	b.ReportMetric(packets/cpu.Seconds(), "packets/cpu-s")
	b.ReportMetric(float64(cpu.Nanoseconds())/packets, "cpu-ns/packet")
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRead(b *testing.B) {
	stage(b, func() (func(*frame.Packet), func()) { return func(*frame.Packet) {}, func() {} })
}

func BenchmarkDecode(b *testing.B) {
	stage(b, func() (func(*frame.Packet), func()) {
		var d frame.Decoder
		var s reassembly.Segment
		return func(p *frame.Packet) { d.Decode(p, &s) }, func() {}
	})
}

func BenchmarkReassemble(b *testing.B) {
	stage(b, func() (func(*frame.Packet), func()) {
		var d frame.Decoder
		var s reassembly.Segment
		a := reassembly.New(reassembly.Options{}, func(*reassembly.Conn) reassembly.Handler { return nil })
		return func(p *frame.Packet) {
			d.Decode(p, &s)
			a.Add(&s)
		}, a.Close
	})
}

// BenchmarkHTTP leaves out what the recorder does with bodies.
func BenchmarkHTTP(b *testing.B) {
	stage(b, func() (func(*frame.Packet), func()) {
		e := New(&seenNothing{}, Options{Ports: []uint16{8000}})
		return e.Packet, e.Close
	})
}

// BenchmarkTrace is all of it but writing the rows.
func BenchmarkTrace(b *testing.B) {
	stage(b, func() (func(*frame.Packet), func()) {
		rec, err := capture.NewRecorder(nowhere{}, capture.Options{})
		if err != nil {
			b.Fatal(err)
		}
		e := New(Into(rec), Options{Ports: []uint16{8000}})
		return e.Packet, func() {
			e.Close()
			if err := rec.Close(); err != nil {
				b.Fatal(err)
			}
			if acc := rec.Accounts(); acc.Recorded != 2000 {
				b.Fatal(acc)
			}
		}
	})
}
