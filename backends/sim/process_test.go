package sim

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"reprise/backends"
)

func TestMain(m *testing.M) {
	MaybeServe()
	os.Exit(m.Run())
}

// A started engine answers with whole streams and is gone after Stop.
func TestStartServeStop(t *testing.T) {
	p, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(p.URL+"/v1/completions", "application/json", strings.NewReader(`{"prompt":[1000,1001,1002],"max_tokens":5,"min_tokens":5,"ignore_eos":true,"stream":true,"temperature":0,"return_token_ids":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	events := 0
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if sc.Text() != "" {
			events++
		}
	}
	if events != 7 {
		t.Errorf("got %d events, want 5 tokens, the usage and the end", events)
	}
	resp, err = http.Get(p.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(b), `vllm:generation_tokens_total{engine="0",model_name="llama-3-8b"} 5.0`) {
		t.Errorf("metrics do not count 5 tokens:\n%s", b)
	}
	be, err := backends.Open("sim", backends.Config{URL: p.URL, Options: map[string]string{"preset": "llama-3-8b@h100"}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := be.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Engine != "sim" || info.VocabSize != 128000 || info.MinID != 1000 || info.MaxLen != 131072 || info.Config["preset"] != "llama-3-8b@h100" || info.Config["num_gpu_blocks"] != "25000" {
		t.Errorf("Probe() = %+v", info)
	}
	if len(info.Warnings) > 0 {
		t.Errorf("Probe() warns of %q", info.Warnings)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop() = %v", err)
	}
	if _, err := http.Get(p.URL + "/health"); err == nil {
		t.Error("the engine answers after Stop")
	}
}
