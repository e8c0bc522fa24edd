package traceformat

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// keyPrefix starts every footer key of this package.
const keyPrefix = "reprise."

// A headerKey is one footer key: what it says and how it is read and written.
// A key whose value is empty is not written.
type headerKey struct {
	name string
	doc  string
	get  func(*Header) (string, error)
	set  func(*Header, string) error
}

var headerKeys = []headerKey{
	{
		"version", "format version, an integer; readers refuse one they do not know",
		func(h *Header) (string, error) { return strconv.Itoa(h.Version), nil },
		func(h *Header, s string) (err error) { h.Version, err = strconv.Atoi(s); return err },
	},
	{
		"start", "when the trace starts, RFC 3339 with nanoseconds, or `relative` where that is unknown",
		func(h *Header) (string, error) {
			if h.Start.IsZero() {
				return "relative", nil
			}
			return h.Start.UTC().Format(time.RFC3339Nano), nil
		},
		func(h *Header, s string) (err error) {
			if s == "relative" {
				h.Start = time.Time{}
				return nil
			}
			h.Start, err = time.Parse(time.RFC3339Nano, s)
			return err
		},
	},
	textKey("clock.source", "clock of the arrivals: `monotonic`, `realtime`, `log`, …", func(h *Header) *string { return &h.Clock.Source }),
	intKey("clock.tick_ns", "resolution of that clock in ns; absent is exact", func(h *Header) *time.Duration { return &h.Clock.Tick }),
	textKey("clock.dequantised", "how arrivals were spread within a tick (`uniform`); absent: they stand as recorded", func(h *Header) *string { return &h.Clock.Dequantised }),
	jsonKey("clock.steps", "known jumps of that clock, a JSON array of `{\"at_ns\":…,\"by_ns\":…}`", func(h *Header) *[]ClockStep { return &h.Clock.Steps }, func(s []ClockStep) bool { return len(s) == 0 }),
	textKey("origin.program", "program that wrote the trace", func(h *Header) *string { return &h.Origin.Program }),
	textKey("origin.version", "its version", func(h *Header) *string { return &h.Origin.Version }),
	textKey("origin.dialect", "format of the source: `azure`, `mooncake`, `nginx`, …", func(h *Header) *string { return &h.Origin.Dialect }),
	textKey("origin.vantage", "where it was recorded: `client`, `proxy`, `server`, `wire`", func(h *Header) *string { return &h.Origin.Vantage }),
	textKey("tokenizer", "tokenizer that lengths count in", func(h *Header) *string { return &h.Tokenizer }),
	intKey("blocks.size", "tokens in a block; absent: no block ids", func(h *Header) *int32 { return &h.Blocks.Size }),
	textKey("blocks.scheme", "how block ids were made: `hmac-sha256-chain`, `sequence`, …", func(h *Header) *string { return &h.Blocks.Scheme }),
	textKey("blocks.scope", "within what ids compare: `global`, `session`, `client`", func(h *Header) *HashScope { return &h.Blocks.Scope }),
	textKey("blocks.partial", "the last block of a prompt that does not fill it: `kept`, `dropped`, `padded`", func(h *Header) *PartialRule { return &h.Blocks.Partial }),
	textKey("blocks.of", "what blocks were cut from: `content` is the messages without a chat template, so that ids need not tile prompt_tokens; absent: the prompt", func(h *Header) *string { return &h.Blocks.Of }),
	intKey("blocks.bytes", "bytes of content in a block, where there was no tokenizer; the size is then the nearest number of tokens", func(h *Header) *int32 { return &h.Blocks.Bytes }),
	textKey("lengths", "prompt length of a later turn: `cumulative` or `incremental`", func(h *Header) *LengthRule { return &h.Lengths }),
	textKey("keys", "fingerprint of the key behind client, session and block ids", func(h *Header) *string { return &h.Keys }),
	{
		"sampling.rate", "share of the traffic that was recorded; absent is all",
		func(h *Header) (string, error) {
			if h.Sampling.Rate == 0 {
				return "", nil
			}
			return strconv.FormatFloat(h.Sampling.Rate, 'g', -1, 64), nil
		},
		func(h *Header, s string) (err error) {
			h.Sampling.Rate, err = strconv.ParseFloat(s, 64)
			if err == nil && !(h.Sampling.Rate >= 0 && h.Sampling.Rate <= 1) {
				err = errors.New("want a share from 0 to 1")
			}
			return err
		},
	},
	textKey("sampling.by", "what was sampled as a whole: `session`, `client`", func(h *Header) *string { return &h.Sampling.By }),
	intKey("rows.seen", "inputs seen: recorded and dropped", func(h *Header) *int64 { return &h.Rows.Seen }),
	intKey("rows.recorded", "rows in the file", func(h *Header) *int64 { return &h.Rows.Recorded }),
	jsonKey("rows.dropped", "inputs dropped by reason, a JSON object", func(h *Header) *map[string]int64 { return &h.Rows.Dropped }, func(m map[string]int64) bool { return len(m) == 0 }),
	{
		"sorted", "whether rows are in the order of (arrival_ns, id, lap): `true` or `false`",
		func(h *Header) (string, error) { return strconv.FormatBool(h.Sorted), nil },
		func(h *Header, s string) (err error) { h.Sorted, err = strconv.ParseBool(s); return err },
	},
	textKey("partial", "why the file is not the whole recording: `interrupted`, `recovered`; absent: it is", func(h *Header) *string { return &h.Partial }),
}

func textKey[T ~string](name, doc string, at func(*Header) *T) headerKey {
	return headerKey{
		name, doc,
		func(h *Header) (string, error) { return strings.ToValidUTF8(string(*at(h)), "\uFFFD"), nil },
		func(h *Header, s string) error { *at(h) = T(s); return nil },
	}
}

func intKey[T ~int32 | ~int64](name, doc string, at func(*Header) *T) headerKey {
	return headerKey{
		name, doc,
		func(h *Header) (string, error) {
			if *at(h) == 0 {
				return "", nil
			}
			return strconv.FormatInt(int64(*at(h)), 10), nil
		},
		func(h *Header, s string) error {
			v, err := strconv.ParseInt(s, 10, 64)
			*at(h) = T(v)
			if err == nil && (v < 0 || int64(T(v)) != v) {
				err = errRange
			}
			return err
		},
	}
}

func jsonKey[T any](name, doc string, at func(*Header) *T, empty func(T) bool) headerKey {
	return headerKey{
		name, doc,
		func(h *Header) (string, error) {
			if empty(*at(h)) {
				return "", nil
			}
			b, err := json.Marshal(*at(h))
			return string(b), err
		},
		func(h *Header, s string) error { return json.Unmarshal([]byte(s), at(h)) },
	}
}

// notOurs are keys that other libraries add to describe their own view of a
// file. They are wrong for any other file and are not carried over.
var notOurs = map[string]bool{"ARROW:schema": true, "pandas": true}

// Check reports every problem that keeps a header from being written.
func (h *Header) Check() error {
	var errs []error
	if h.Version != 0 && h.Version != Version {
		errs = append(errs, fmt.Errorf("header: version %d: %w, want %d", h.Version, ErrVersion, Version))
	}
	if r := h.Sampling.Rate; math.IsNaN(r) || r < 0 || r > 1 {
		errs = append(errs, fmt.Errorf("header: sampling rate is %v, want a share from 0 to 1", r))
	}
	if h.Clock.Tick < 0 || h.Blocks.Size < 0 || h.Blocks.Bytes < 0 || h.Rows.Seen < 0 || h.Rows.Recorded < 0 {
		errs = append(errs, errors.New("header: a count, size or tick is negative"))
	}
	if y := h.Start.UTC().Year(); !h.Start.IsZero() && (y < 1 || y > 9999) {
		errs = append(errs, fmt.Errorf("header: start lies in the year %d", y))
	}
	for k := range h.Extra {
		if ours(k) || k == "" {
			errs = append(errs, fmt.Errorf("header: extra key %q has a field of its own", k))
		}
	}
	return errors.Join(errs...)
}

func ours(key string) bool {
	name, ok := strings.CutPrefix(key, keyPrefix)
	if !ok {
		return false
	}
	for i := range headerKeys {
		if headerKeys[i].name == name {
			return true
		}
	}
	return false
}

// footer is the header as key-values, in a fixed order.
func (h *Header) footer(add func(key, value string)) error {
	for i := range headerKeys {
		k := &headerKeys[i]
		v, err := k.get(h)
		if err != nil {
			return fmt.Errorf("header: %s: %w", k.name, err)
		}
		if v != "" {
			add(keyPrefix+k.name, v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(h.Extra)) {
		add(k, strings.ToValidUTF8(h.Extra[k], "\uFFFD"))
	}
	return nil
}

// readFooter reads what footer wrote. A file without our keys, such as one
// that another program wrote with our columns, has a zero header of this
// version.
func readFooter(each iter.Seq2[string, string]) (*Header, error) {
	known := map[string]string{}
	h := &Header{Version: Version}
	for k, v := range each {
		switch {
		case ours(k):
			known[k] = v
		case notOurs[k] || k == "":
		default:
			if h.Extra == nil {
				h.Extra = map[string]string{}
			}
			h.Extra[k] = v
		}
	}
	for i := range headerKeys {
		k := &headerKeys[i]
		v, ok := known[keyPrefix+k.name]
		if !ok {
			continue
		}
		if err := k.set(h, v); err != nil {
			return nil, fmt.Errorf("footer key %s%s is %.40q: %w", keyPrefix, k.name, v, err)
		}
		if h.Version != Version {
			return nil, fmt.Errorf("%w %d, want %d: a later release of reprise reads it", ErrVersion, h.Version, Version)
		}
	}
	return h, nil
}

// Clone returns a copy that shares nothing with h.
func (h *Header) Clone() *Header {
	c := *h
	c.Clock.Steps = slices.Clone(h.Clock.Steps)
	c.Rows.Dropped = maps.Clone(h.Rows.Dropped)
	c.Extra = maps.Clone(h.Extra)
	return &c
}
