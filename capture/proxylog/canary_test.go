package proxylog

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"reprise/capture"
	"reprise/traceformat"
)

// A lockedSink is a sink that may be looked at while it fills.
type lockedSink struct {
	sink
	mu sync.Mutex
}

func newLockedSink() *lockedSink { return &lockedSink{} }

func (s *lockedSink) Record(l *capture.Logged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sink.Record(l)
}

func (s *lockedSink) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.rows)
}

// A jsonSink prints rows as a recorder has made them.
type jsonSink struct{ bytes.Buffer }

func (s *jsonSink) Append(r *traceformat.Row) error {
	s.Write(r.AppendJSON(nil))
	return nil
}

// TestCanary puts a random word into every text of every sample, whole lines and
// broken ones, and looks for it in what comes out: rows, reports, capabilities,
// errors. Names of models, reasons and classes have columns; all else must not
// get through.
func TestCanary(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, tt := range samples {
		t.Run(tt.file, func(t *testing.T) {
			for range 20 {
				raw := make([]byte, 12)
				for i := range raw {
					raw[i] = byte(rng.Uint32())
				}
				canary := "canary " + hex.EncodeToString(raw)
				text := plant(readAll(t, tt.file), canary, rng)
				var out bytes.Buffer
				o := tt.o
				o.Format, o.MaxBad = tt.dialect, 1
				if tt.dialect == "mapping" {
					o.Format = ""
				}
				im, err := Open([]Input{{"log", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }}}, &o)
				fmt.Fprintln(&out, err)
				if err == nil {
					rows := &jsonSink{}
					rec, err := capture.NewRecorder(rows, capture.Options{Slack: 1e18})
					if err != nil {
						t.Fatal(err)
					}
					report, err := im.Run(context.Background(), rec)
					fmt.Fprintln(&out, err, fmt.Sprintf("%+v", report), rec.Close(), rec.Accounts(), rec.Header())
					out.Write(rows.Bytes())
				}
				if strings.Contains(out.String(), canary[7:]) {
					t.Fatalf("the word came through:\n%s", out.String())
				}
			}
		})
	}
}

// plant puts a word into texts of a log: into string literals, and at random.
func plant(log []byte, word string, rng *rand.Rand) []byte {
	var out []byte
	for line := range bytes.Lines(log) {
		switch at := rng.IntN(len(line)); {
		case rng.IntN(3) == 0:
			out = append(append(append(out, line[:at]...), word...), line[at:]...)
		default:
			// Behind a quote that opens a value.
			if i := bytes.Index(line[at:], []byte(`":"`)); i >= 0 {
				at += i + 3
			} else if i := bytes.Index(line[at:], []byte(`": "`)); i >= 0 {
				at += i + 4
			} else if i := bytes.IndexByte(line[at:], ' '); i >= 0 {
				at += i
			}
			out = append(append(append(out, line[:at]...), word...), line[at:]...)
		}
	}
	return out
}
