package traceformat

import "iter"

// A Reader yields the rows of one trace.
type Reader interface {
	// Header describes the trace. Counts that only a full read can know may
	// be zero until All has ended.
	Header() *Header
	// All yields the rows in file order. The Row belongs to the Reader and is
	// overwritten by the next iteration. An error is a [*RowError], comes with
	// a nil Row and ends the sequence. All may be ranged over once.
	All() iter.Seq2[*Row, error]
	Close() error
}
