package proxylog

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A choppy reader gives its text in pieces of the given sizes, over and over.
type choppy struct {
	text  string
	sizes []int
	n     int
}

func (c *choppy) Read(p []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := min(c.sizes[c.n%len(c.sizes)], len(c.text), len(p))
	c.n++
	copy(p, c.text[:n])
	c.text = c.text[n:]
	return n, nil
}

func frames(r io.Reader, kind frame) (out []string) {
	f := framer{src: r, kind: kind}
	for {
		rec, err := f.next()
		switch err {
		case nil:
			out = append(out, string(rec))
		case errBetween, errTooLong:
			out = append(out, err.Error())
		default:
			return out
		}
	}
}

// However an input comes in pieces, its records are the same.
func TestFramesDoNotDependOnReads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]frame{lineFrame, jsonFrame, csvFrame}).Draw(t, "kind")
		text := rapid.StringOfN(rapid.SampledFrom([]rune("{}[]\",\\\n\r a1")), 0, 80, -1).Draw(t, "text")
		whole := frames(strings.NewReader(text), kind)
		pieces := frames(&choppy{text: text, sizes: rapid.SliceOfN(rapid.IntRange(1, 7), 1, 4).Draw(t, "sizes")}, kind)
		if strings.Join(whole, "\x00") != strings.Join(pieces, "\x00") {
			t.Fatalf("%q in pieces gives %q, whole %q", text, pieces, whole)
		}
	})
}

func TestFrames(t *testing.T) {
	tests := []struct {
		name string
		kind frame
		in   string
		want []string
	}{
		{"lines, blank ones left out", lineFrame, "a\r\n\n  \nb", []string{"a", "b"}},
		{"objects of arrays and between", jsonFrame, "[{\"a\":\"}\\\"\"},\n {\"b\":{}}]\n{}\n", []string{`{"a":"}\""}`, `{"b":{}}`, "{}"}},
		{"what is no object", jsonFrame, "{}\nnoise\n{}", []string{"{}", errBetween.Error(), "{}"}},
		{"an object that is cut", jsonFrame, `{"a":1},{"b":`, []string{`{"a":1}`, `{"b":`}},
		{"line ends in quotes", csvFrame, "a,\"b\nc\"\"\",d\ne,f,g\n", []string{"a,\"b\nc\"\"\",d", "e,f,g"}},
	}
	for _, tt := range tests {
		if got := frames(strings.NewReader(tt.in), tt.kind); strings.Join(got, "|") != strings.Join(tt.want, "|") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestSplitCSV(t *testing.T) {
	fields, _, err := splitCSV(nil, []byte(`a,"b ""c"",d",,"e"`), nil, ',')
	if err != nil || string(bytes.Join(fields, []byte("|"))) != `a|b "c",d||e` {
		t.Errorf("%q, %v", fields, err)
	}
	for _, bad := range []string{`"a`, `"a"b,c`} {
		if _, _, err := splitCSV(nil, []byte(bad), nil, ','); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
