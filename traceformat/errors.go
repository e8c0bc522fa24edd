package traceformat

import (
	"errors"
	"fmt"
)

// A RowError locates a problem in a trace.
type RowError struct {
	Name string // file, for messages
	Row  int64  // index of the row from 0, or -1 where it concerns the file
	Line int64  // line of a text format from 1, or 0
	Err  error
}

func (e *RowError) Error() string {
	switch {
	case e.Line > 0:
		return fmt.Sprintf("%s: line %d: %v", e.Name, e.Line, e.Err)
	case e.Row >= 0:
		return fmt.Sprintf("%s: row %d: %v", e.Name, e.Row, e.Err)
	default:
		return fmt.Sprintf("%s: %v", e.Name, e.Err)
	}
}

func (e *RowError) Unwrap() error { return e.Err }

// Problems that callers tell apart with errors.Is.
var (
	ErrEmpty     = errors.New("the file is empty")
	ErrDirectory = errors.New("is a directory without a trace: want a trace file, a run directory or a folder of Parquet files")
	ErrVersion   = errors.New("unsupported format version")
	ErrUnsorted  = errors.New("arrival goes backwards")
	ErrFormat    = errors.New("not a known trace format")
	// ErrUnfinished is a dataset in object storage that is not all there.
	ErrUnfinished = errors.New("its upload has not ended: the trace cp that it was begun with goes on with it")
	ErrJournal    = errors.New("is the journal of an unfinished recording")
	ErrTruncated  = errors.New("the file is cut short")
)
