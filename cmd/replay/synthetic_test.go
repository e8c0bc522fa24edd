package main

import (
	"bytes"
	"strings"
	"testing"

	"reprise/internal/cli"
)

// A description that cannot be read is a usage error that says which key and
// what it takes; one beside a trace is refused.
func TestSyntheticUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--synthetic rate=fast", `rate: "fast" is no number`},
		{"--synthetic tokens=5", "want key=value, with keys rate"},
		{"--synthetic rate=2?seed=4", "question mark"},
		{"--synthetic rate=2 trace.parquet", "takes the place of a trace"},
		{"", "want one trace, got 0 arguments"},
		{"model:nothing --option max-num-seqs=4 -q", "no model is called nothing"},
	} {
		var out, errs bytes.Buffer
		code := cli.Main(app(), append([]string{"replay"}, strings.Fields(tt.args)...), &out, &errs)
		if code == cli.Done || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("replay %s = %d %q, want %q", tt.args, code, errs.String(), tt.want)
		}
	}
}
