// Package backends knows the servers that a trace can be played against: how
// each is asked for exact lengths, and what its answers say.
//
// A backend is pure translation. It encodes a [Call] into a body and decodes
// events into token counts; sockets and clocks belong to the caller. Each kind
// of server is one folder with one file of code and a line in a registry:
// its init function calls [Register].
package backends

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"reprise/traceformat"
)

// A Config says which server, and how to address it.
type Config struct {
	URL    string // base, e.g. http://127.0.0.1:8000
	Model  string // as the server names it; empty: what the server says
	APIKey string // bearer token; never written anywhere
	// Chat sends text to the chat endpoint where the default is token ids.
	Chat bool
	// Options are backend-specific, "key=value" on the command line.
	Options map[string]string
}

// Info is what a server says of itself.
type Info struct {
	Engine    string            `json:"engine"` // "vllm", "sglang", "llama.cpp", "sim", ...
	Version   string            `json:"version,omitempty"`
	Model     string            `json:"model,omitempty"`
	MaxLen    int               `json:"max_model_len,omitempty"`  // prompt and answer together; 0: unknown
	MaxPrompt int               `json:"max_prompt_len,omitempty"` // prompt alone; 0: MaxLen is all there is
	VocabSize int               `json:"vocab_size,omitempty"`     // token ids below this are safe to send; 0: unknown
	MinID     int               `json:"min_token_id,omitempty"`   // ids below this may be special (padding, end of text); from here on they are ordinary
	NoReuse   bool              `json:"no_reuse,omitempty"`       // a connection carries one request, whatever the server says of keep-alive
	Cache     CacheInfo         `json:"cache"`                    // prompts that share a prefix
	Config    map[string]string `json:"config,omitempty"`         // as the engine reports it, flat
	Warnings  []string          `json:"warnings,omitempty"`       // what a run against it cannot be trusted for
}

// A Call is one request, in terms that every server shares.
type Call struct {
	ID          string   // request id, echoed by servers that can
	PromptIDs   []uint32 // the prompt as token ids, or
	Text        string   // the prompt as text
	MaxTokens   int      // answer length; exact where the server can be told to ignore EOS
	N           int      // choices; 0 means 1
	Stream      bool
	Temperature traceformat.Opt[float64]
	CacheSalt   string // prompts share cached prefixes only under one salt, where Info.Cache.Salt
}

// An Event is one decoded event of a stream.
type Event struct {
	// Tokens that this event adds, over all choices. An event may carry a token
	// and no text; a role, a comment or a usage block carries none.
	Tokens int
	// Exact is false where the server gives no running count, so that an event
	// with content is taken for one token until the final usage settles it.
	Exact bool
	Done  bool // the stream's end mark
}

// A Result is what the server said, once the answer has ended.
type Result struct {
	PromptTokens, OutputTokens, CachedTokens, ReasoningTokens traceformat.Opt[int32]
	FinishReason                                              string
	// Error is a short class, empty if the server reported no error: "http_400",
	// "error_event", "error_body" (an error under status 200), "abort" and
	// "error" (the finish reasons), "bad_event" or "bad_body" (not the dialect).
	// The first three may name a cause after a slash: "http_400/context_overflow".
	// Message is for the terminal only and never stored.
	Error, Message string

	Queue, Prefill, TTFT, E2E traceformat.Opt[time.Duration] // the engine's own clocks
}

// A Decoder reads the answer to one Call. Call either Event, for each event of a
// stream, or Body once; [NewDecoder] is the one that all dialects share.
type Decoder interface {
	// Event decodes the data of one server-sent event, "[DONE]" included. An
	// error event is not an error of Event: Result reports it. An error means
	// bytes that are no event of a stream; Result reports that too.
	Event(data []byte) (Event, error)
	// Body decodes an answer that is not a stream: a success, or the body of
	// an error status. The Event returned counts the tokens of a success.
	Body(status int, data []byte) (Event, error)
	// Result sums up what was decoded. It may be asked at any time.
	Result() Result
}

// A Backend speaks one server's dialect. Probe comes first: what it learns (the
// model's name, what the server accepts) shapes what the others do. After it,
// they may be called from any goroutine.
type Backend interface {
	// Probe asks the server what it is, and changes nothing there.
	Probe(ctx context.Context) (*Info, error)
	// Encode appends the body of c to dst and returns it with the path it goes
	// to.
	Encode(dst []byte, c *Call) (path string, body []byte)
	// TokenIDs says whether Encode sends PromptIDs (otherwise Text).
	TokenIDs() bool
	// NewDecoder returns a Decoder for the answer to c.
	NewDecoder(c *Call) Decoder
}

// A Driver makes a Backend for a server.
type Driver func(Config) (Backend, error)

var drivers = map[string]Driver{}

// Register adds a backend under its name. It is called from init functions.
func Register(name string, d Driver) {
	if _, dup := drivers[name]; dup {
		panic("backends: " + name + " is registered twice")
	}
	drivers[name] = d
}

// Names lists the registered backends.
func Names() []string { return slices.Sorted(maps.Keys(drivers)) }

// Open returns the named backend for the server of c.
func Open(name string, c Config) (Backend, error) {
	d, ok := drivers[name]
	if !ok {
		return nil, fmt.Errorf("no backend %q; there are %s", name, strings.Join(Names(), ", "))
	}
	return d(c)
}

// CheckOptions reports an option that is not among known.
func (c Config) CheckOptions(known ...string) error {
	for _, k := range slices.Sorted(maps.Keys(c.Options)) {
		if slices.Contains(known, k) {
			continue
		}
		if len(known) == 0 {
			return fmt.Errorf("no option %q: this backend has none", k)
		}
		return fmt.Errorf("no option %q; there are %s", k, strings.Join(known, ", "))
	}
	return nil
}

// BaseURL returns the server's address as other packages are to use it: without
// a slash at the end, and without the "/v1" that users of OpenAI's clients are
// used to typing, as the paths of Encode bring their own.
func (c Config) BaseURL() (string, error) {
	if c.URL == "" {
		return "", errors.New("no server named: give its address, such as http://127.0.0.1:8000")
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return "", fmt.Errorf("server address: %w", errors.Unwrap(err)) // the text of err quotes the address
	case u.User != nil:
		return "", errors.New("server address: it holds credentials, which would end up in manifests: give an API key instead")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return "", fmt.Errorf("server address %q: want http://host:port or https://host", c.URL)
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("server address %q: it has a query or a fragment", c.URL)
	}
	return strings.TrimSuffix(strings.TrimRight(c.URL, "/"), "/v1"), nil
}
