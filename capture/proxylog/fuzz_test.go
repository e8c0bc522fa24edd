package proxylog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"
)

// fuzzDialect checks what an import relies on, whatever a log holds: no panic,
// rows that a writer takes but for their arrival, and every record accounted
// for: it gave a row or a reason, or is among the unreadable.
func fuzzDialect(f *testing.F, dialect string) {
	var base Options
	for _, s := range samples {
		if s.dialect != dialect {
			continue
		}
		log := readAll(f, s.file)
		f.Add(log)
		f.Add(log[:len(log)/2])
		f.Add(bytes.ReplaceAll(log, []byte("0"), []byte("-")))
		base = s.o
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		o := base
		o.Format, o.MaxBad, o.ArrivalsAreEnd, o.Zone, o.Year, o.TrustHeaderTime = dialect, 1, true, time.UTC, 2026, true
		if dialect == "mapping" {
			o.Format = ""
		}
		im, err := Open([]Input{{"fuzz", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(log)), nil }}}, &o)
		if err != nil {
			return
		}
		s := &sink{}
		r, err := im.Run(context.Background(), s)
		if err != nil {
			if _, ok := errors.AsType[*BadShareError](err); ok {
				t.Fatalf("%v, with all allowed", err)
			}
			return
		}
		total := int64(len(s.rows))
		for _, n := range s.dropped {
			total += n
		}
		if total == 0 && r.Records > 0 {
			// A message of OTLP, a page of an API or a line within a stream may
			// hold nothing at all.
			switch dialect {
			case "otel-genai", "vllm-otlp", "langfuse":
			default:
				t.Fatalf("%d records and nothing came of them", r.Records)
			}
		}
		for i := range s.rows {
			l := &s.rows[i]
			if err := l.Row.Check(); err != nil {
				t.Fatalf("row %d: %v", i, err)
			}
			if l.Arrival <= 0 || l.Row.TTFT.OK && (l.Row.TTFT.V < 0 || l.Row.E2E.OK && l.Row.TTFT.V > l.Row.E2E.V) {
				t.Fatalf("row %d: arrival %d, TTFT %v of %v", i, l.Arrival, l.Row.TTFT, l.Row.E2E)
			}
			if l.Row.TTFTSource != "" && !l.Row.TTFT.OK || l.Row.PromptTokensSource != "" && !l.Row.PromptTokens.OK {
				t.Fatalf("row %d: the source of what is unknown", i)
			}
		}
	})
}

func FuzzNginx(f *testing.F)          { fuzzDialect(f, "nginx") }
func FuzzNginxCombined(f *testing.F)  { fuzzDialect(f, "nginx-combined") }
func FuzzHAProxy(f *testing.F)        { fuzzDialect(f, "haproxy") }
func FuzzEnvoyText(f *testing.F)      { fuzzDialect(f, "envoy-text") }
func FuzzEnvoy(f *testing.F)          { fuzzDialect(f, "envoy") }
func FuzzEnvoyAIGateway(f *testing.F) { fuzzDialect(f, "envoy-ai-gateway") }
func FuzzCaddy(f *testing.F)          { fuzzDialect(f, "caddy") }
func FuzzTraefik(f *testing.F)        { fuzzDialect(f, "traefik") }
func FuzzTraefikCLF(f *testing.F)     { fuzzDialect(f, "traefik-clf") }
func FuzzKong(f *testing.F)           { fuzzDialect(f, "kong") }
func FuzzHigress(f *testing.F)        { fuzzDialect(f, "higress") }
func FuzzLiteLLM(f *testing.F)        { fuzzDialect(f, "litellm") }
func FuzzSGLangMetrics(f *testing.F)  { fuzzDialect(f, "sglang-metrics") }
func FuzzSGLangLog(f *testing.F)      { fuzzDialect(f, "sglang-log") }
func FuzzVLLMLog(f *testing.F)        { fuzzDialect(f, "vllm-log") }
func FuzzVLLMSpans(f *testing.F)      { fuzzDialect(f, "vllm-otlp") }
func FuzzOTelGenAI(f *testing.F)      { fuzzDialect(f, "otel-genai") }
func FuzzDynamo(f *testing.F)         { fuzzDialect(f, "dynamo") }
func FuzzLangfuse(f *testing.F)       { fuzzDialect(f, "langfuse") }
func FuzzHelicone(f *testing.F)       { fuzzDialect(f, "helicone") }
func FuzzTGI(f *testing.F)            { fuzzDialect(f, "tgi") }
func FuzzMapping(f *testing.F)        { fuzzDialect(f, "mapping") }

// FuzzLogFormat checks that no format of nginx makes trouble.
func FuzzLogFormat(f *testing.F) {
	f.Add(`log_format a escape=json '{"t":"$msec","d":"$request_time"}';`, `{"t":"1.5","d":"0.1"}`)
	f.Add(`$remote_addr [$msec] "$request" $request_time`, `a [1.5] "POST / HTTP/1.1" 0.5`)
	f.Fuzz(func(t *testing.T, format, line string) {
		im, err := Open([]Input{{"fuzz", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte(line))), nil }}},
			&Options{Format: "nginx", LogFormat: format, MaxBad: 1, ArrivalsAreEnd: true, Zone: time.UTC})
		if err != nil {
			return
		}
		_, _ = im.Run(context.Background(), &sink{})
	})
}
