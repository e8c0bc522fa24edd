package tokenizer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func testFile(t testing.TB, shape string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", shape+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// edit returns a shape's file with one thing in it changed.
func edit(t testing.TB, shape, old, new string) []byte {
	t.Helper()
	data := testFile(t, shape)
	if bytes.Count(data, []byte(old)) != 1 {
		t.Fatalf("%s.json has %q %d times, want once", shape, old, bytes.Count(data, []byte(old)))
	}
	return bytes.Replace(data, []byte(old), []byte(new), 1)
}
