package backends

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"reprise/internal/llmapi"
)

// What bounds a request of Probe. The longest answer seen is vLLM's /metrics,
// 58 KB; the slowest is its /server_info, 2.5 s.
const (
	maxAnswer = 16 << 20
	maxWait   = 15 * time.Second
)

var prober = &http.Client{Timeout: maxWait}

// Ask sends a request of a Probe: a GET, or a POST if body is not nil. Its
// error says what went wrong in reaching the server; any status is a success.
func (c Config) Ask(ctx context.Context, path string, body []byte) (status int, answer []byte, err error) {
	base, err := c.BaseURL()
	if err != nil {
		return 0, nil, err
	}
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("server address: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.APIKey)
	}
	resp, err := prober.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return 0, nil, fmt.Errorf("%s %s%s: %w", method, base, path, err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s%s: %w", method, base, path, err)
	}
	return resp.StatusCode, answer, nil
}

// AskJSON is Ask for a JSON answer, which goes to v. A status other than 200 is
// an error that a [*StatusError] describes.
func (c Config) AskJSON(ctx context.Context, path string, body []byte, v any) error {
	status, answer, err := c.Ask(ctx, path, body)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		_, msg := llmapi.HTTPFault(status, answer)
		return &StatusError{Path: path, Status: status, Message: msg}
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return fmt.Errorf("%s: not the JSON that was expected: %w", path, err)
	}
	return nil
}

// A StatusError is an answer to a Probe's request that is not 200.
type StatusError struct {
	Path    string
	Status  int
	Message string // the server's words, one line
}

func (e *StatusError) Error() string {
	hint := ""
	if e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden {
		hint = " (is an API key needed?)"
	}
	return fmt.Sprintf("%s: status %d: %s%s", e.Path, e.Status, e.Message, hint)
}

// A Model is an entry of /v1/models.
type Model struct {
	ID      string  `json:"id"`
	OwnedBy string  `json:"owned_by"`
	Root    string  `json:"root"`
	Parent  *string `json:"parent"`
	MaxLen  int     `json:"max_model_len"`
	Meta    struct {
		Context int `json:"n_ctx"` // of one slot
	} `json:"meta"` // llama.cpp
}

// FindModel asks /v1/models for the model of c or, if c names none, for the
// first that is not an adapter of another.
func (c Config) FindModel(ctx context.Context) (Model, error) {
	var list struct {
		Data []Model `json:"data"`
	}
	if err := c.AskJSON(ctx, "/v1/models", nil, &list); err != nil {
		return Model{}, err
	}
	var names []string
	for _, m := range list.Data {
		if m.ID == c.Model || c.Model == "" && m.Parent == nil {
			return m, nil
		}
		names = append(names, m.ID)
	}
	if c.Model == "" {
		return Model{}, errors.New("/v1/models: the server names no model")
	}
	return Model{}, fmt.Errorf("/v1/models: no model %q; there are %q", c.Model, names)
}
