package packet

import (
	"io"
	"testing"

	"reprise/capture"
	"reprise/capture/packet/frame"
	"reprise/traceformat"
)

type rows struct{ list []traceformat.Row }

func (r *rows) Append(row *traceformat.Row) error { r.list = append(r.list, *row); return nil }

func TestLo(t *testing.T) {
	src, err := frame.Open("testdata/lo.pcap")
	if err != nil {
		t.Fatal(err)
	}
	out := &rows{}
	rec, err := capture.NewRecorder(out, capture.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := New(Into(rec), Options{})
	m := frame.FromSource(src, frame.DefaultReorder)
	var p frame.Packet
	for {
		if err := m.Next(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		e.Packet(&p)
	}
	e.Close()
	t.Logf("%+v", e.Stats())
	t.Log(rec.Accounts())
}
