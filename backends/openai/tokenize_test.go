package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"reprise/backends"
)

// What each engine is asked for the tokens of a text, and of the prompt that
// it makes of the text.
func TestTokenize(t *testing.T) {
	const (
		text    = `/tokenize {"model":"m","prompt":" a \"b\"","content":" a \"b\"","add_special_tokens":false,"add_special":false}`
		special = `/tokenize {"model":"m","prompt":" a \"b\"","content":" a \"b\"","add_special_tokens":true,"add_special":true}`
		chat    = `"messages":[{"role":"user","content":" a \"b\""}]}`
	)
	tests := []struct {
		engine string
		chat   bool
		prompt []string // requests of TokenizePrompt
	}{
		{llamaCpp, true, []string{`/apply-template {` + chat, `/tokenize {"model":"m","prompt":"<u> a \"b\"</u>","content":"<u> a \"b\"</u>","add_special_tokens":true,"add_special":true}`}},
		{llamaCpp, false, []string{special}},
		{vllm, true, []string{`/tokenize {"model":"m",` + chat}},
		{sglang, true, []string{`/tokenize {"model":"m",` + chat}},
		{"", false, []string{special}},
	}
	for _, tt := range tests {
		var asked []string
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			asked = append(asked, r.URL.Path+" "+string(b))
			if !json.Valid(b) {
				t.Errorf("not JSON: %s", b)
			}
			if r.URL.Path == "/apply-template" {
				fmt.Fprint(w, `{"prompt":"<u> a \"b\"</u>"}`)
				return
			}
			fmt.Fprint(w, `{"count":2,"tokens":[7,4294967295]}`)
		}))
		b, err := New(backends.Config{URL: s.URL, Model: "m", Chat: tt.chat})
		if err != nil {
			t.Fatal(err)
		}
		b.shape(tt.engine)
		for _, ask := range []struct {
			of   string
			ids  func() ([]uint32, error)
			want []string
		}{
			{"text", func() ([]uint32, error) { return b.Tokenize(t.Context(), ` a "b"`) }, []string{text}},
			{"prompt", func() ([]uint32, error) { return b.TokenizePrompt(t.Context(), ` a "b"`) }, tt.prompt},
		} {
			asked = nil
			ids, err := ask.ids()
			if err != nil || !slices.Equal(ids, []uint32{7, 1<<32 - 1}) {
				t.Errorf("%q, chat %t: tokens of the %s: %v, %v", tt.engine, tt.chat, ask.of, ids, err)
			}
			if !slices.Equal(asked, ask.want) {
				t.Errorf("%q, chat %t: tokens of the %s: asked\n%s\nwant\n%s", tt.engine, tt.chat, ask.of, strings.Join(asked, "\n"), strings.Join(ask.want, "\n"))
			}
		}
		s.Close()
	}
}

// A server that refuses has no tokenizer; one that breaks is an error.
func TestTokenizeRefused(t *testing.T) {
	tests := []struct {
		engine string
		status int
		body   string
		none   bool // ErrNoTokenizer
		asked  bool
	}{
		{"", 404, `{"detail":"Not Found"}`, true, true},
		{vllm, 400, `{"error":{"message":"no"}}`, true, true},
		{llamaCpp, 501, `{"error":{"message":"not supported"}}`, true, true},
		{llamaCpp, 500, `{"error":{"message":"dead"}}`, false, true},
		{vllm, 200, `{"tokens":[-1]}`, false, true},
		{vllm, 200, `<html>`, false, true},
		{hosted, 200, `{"tokens":[1]}`, true, false}, // it would count as a request
	}
	for _, tt := range tests {
		asked := false
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = true
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.body)
		}))
		b, err := New(backends.Config{URL: s.URL, Model: "m", Chat: true})
		if err != nil {
			t.Fatal(err)
		}
		b.shape(tt.engine)
		for name, ask := range map[string]func() ([]uint32, error){
			"Tokenize":       func() ([]uint32, error) { return b.Tokenize(t.Context(), " a") },
			"TokenizePrompt": func() ([]uint32, error) { return b.TokenizePrompt(t.Context(), " a") },
		} {
			if ids, err := ask(); err == nil || errors.Is(err, backends.ErrNoTokenizer) != tt.none || asked != tt.asked {
				t.Errorf("%q answers %d %s: %s = %v, %v; want ErrNoTokenizer %t; asked %t", tt.engine, tt.status, tt.body, name, ids, err, tt.none, asked)
			}
		}
		s.Close()
	}
}
