package traceformat

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of what a row may say. Anything beyond is a mistake of its writer: a
// unit taken for another, a stamp for an offset, a sentinel for a value.
const (
	maxTokens  = 1 << 30
	maxArrival = 10 * 365 * 24 * time.Hour
)

// Check reports what makes a row useless to any reader: negative or absurd
// lengths and arrivals, and chunk lists that do not belong together. Writers
// refuse such a row and readers stop at it; [Validate] knows more rules.
func (r *Row) Check() error {
	switch {
	case r.Arrival < 0:
		return fmt.Errorf("arrival_ns is %d, before the start of the trace", int64(r.Arrival))
	case r.Arrival > maxArrival:
		return fmt.Errorf("arrival_ns is %d, more than ten years after the start: is it a date and not an offset?", int64(r.Arrival))
	case r.Lap < 0:
		return fmt.Errorf("lap is %d", r.Lap)
	}
	if err := checkTokens("prompt_tokens", r.PromptTokens); err != nil {
		return err
	}
	if err := checkTokens("output_tokens", r.OutputTokens); err != nil {
		return err
	}
	if err := checkTokens("max_tokens", r.MaxTokens); err != nil {
		return err
	}
	if err := checkTokens("cached_tokens", r.CachedTokens); err != nil {
		return err
	}
	if len(r.ChunkTokens) != len(r.ChunkTimes) && r.ChunkTokens != nil && r.ChunkTimes != nil {
		return fmt.Errorf("chunk_ns has %d items and chunk_tokens %d", len(r.ChunkTimes), len(r.ChunkTokens))
	}
	return nil
}

func checkTokens(name string, n Opt[int32]) error {
	switch {
	case !n.OK || uint32(n.V) <= maxTokens:
		return nil
	case n.V < 0:
		return fmt.Errorf("%s is %d, negative", name, n.V)
	default:
		return fmt.Errorf("%s is %d, want at most %d", name, n.V, maxTokens)
	}
}

// rowError locates err in a row of the named trace, unless it is located.
func rowError(name string, row int64, err error) error {
	if _, ok := errors.AsType[*RowError](err); ok {
		return err
	}
	return &RowError{Name: name, Row: row, Err: err}
}

func fileError(name string, err error) error { return rowError(name, -1, err) }
