package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"reprise/internal/cli"
	"reprise/internal/traceout"
)

// A shelf is a store that takes one object, or refuses it.
type shelf struct {
	traceout.Store
	err  error
	held map[string][]byte
}

func (s *shelf) Check(context.Context, string, bool) error { return nil }

func (s *shelf) Upload(_ context.Context, path, name string, _ bool) (bool, error) {
	b, err := os.ReadFile(path)
	if err := errors.Join(err, s.err); err != nil {
		return false, err
	}
	s.held[name] = b
	return false, nil
}

// A capture for object storage is a file here until it is uploaded, and stays one
// where that fails.
func TestUpload(t *testing.T) {
	t.Chdir(t.TempDir())
	const line = `{"msec":"1795426022.563","remote_addr":"127.0.0.1","method":"POST","uri":"/v1/chat/completions","status":"200","request_time":"1.316","request_completion":"OK"}` + "\n"
	if err := os.WriteFile("access.log", []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &shelf{held: map[string][]byte{}}
	traceout.RegisterStore(s)
	t.Cleanup(func() { traceout.RegisterStore(nil) })
	run := func() (int, string) {
		var stdout, stderr bytes.Buffer
		code := cli.Main(app(), []string{"capture", "logs", "access.log", "-o", "s3://b/day/t.parquet?region=x"}, &stdout, &stderr)
		return code, stderr.String()
	}
	s.err = errors.New("refused")
	if code, text := run(); code != cli.Failed || !strings.Contains(text, "trace cp t.parquet 's3://b/day/t.parquet?region=x'") {
		t.Errorf("a store that refuses: status %d, %s", code, text)
	}
	if _, err := os.Stat("t.parquet"); err != nil {
		t.Fatalf("what was not uploaded is gone: %v", err)
	}
	if code, text := run(); code != cli.Usage || !strings.Contains(text, "t.parquet exists") {
		t.Errorf("with the file in the way: status %d, %s", code, text)
	}
	if err := os.Remove("t.parquet"); err != nil {
		t.Fatal(err)
	}
	s.err = nil
	if code, text := run(); code != 0 || !bytes.HasPrefix(s.held["s3://b/day/t.parquet?region=x"], []byte("PAR1")) || !strings.Contains(text, "to s3://b/day/t.parquet?region=x") {
		t.Errorf("status %d, %d objects held: %s", code, len(s.held), text)
	}
	if left, _ := filepath.Glob("t.parquet*"); len(left) > 0 {
		t.Errorf("%q stay", left)
	}
}
