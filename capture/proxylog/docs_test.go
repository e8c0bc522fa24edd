package proxylog

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocs keeps docs/capturing.md complete: it names every dialect and every
// field of a mapping, and its mapping is one.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "capturing.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, d := range Dialects() {
		if d.Name != "mapping" && !strings.Contains(text, "(`"+d.Name+"`)") {
			t.Errorf("docs/capturing.md does not name the dialect %s", d.Name)
		}
	}
	for _, f := range sortedKeys(fieldNames) {
		if !strings.Contains(text, "`"+f+"`") {
			t.Errorf("docs/capturing.md does not name the field %s", f)
		}
	}
	example := regexp.MustCompile("(?s)```\n(format: csv.*?)```").FindStringSubmatch(text)
	if example == nil {
		t.Fatal("docs/capturing.md has no example of a mapping")
	}
	if _, err := ParseMapping([]byte(example[1])); err != nil {
		t.Errorf("the example of a mapping: %v", err)
	}
	config := regexp.MustCompile("(?s)```\n(log_format llm.*?)```").FindStringSubmatch(text)
	if config == nil {
		t.Fatal("docs/capturing.md has no log_format")
	}
	format, err := nginxLogFormat(config[1])
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := nginxKeys(format); err != nil || len(keys) != 10 {
		t.Errorf("%d keys in the log_format, want 10: %v, %v", len(keys), keys, err)
	}
}
