package convert

import (
	"io"
	"iter"

	"reprise/traceformat"
)

// A sortedSource yields the rows of another source in order of arrival.
type sortedSource struct {
	source
	sorted traceformat.Reader
	next   func() (*traceformat.Row, error, bool)
	stop   func()
}

// sortSource reads all of src, so that its errors are found here, and sorts its
// rows in bounded memory. Rows of one arrival stay in the order of their ids.
func sortSource(src source, o *traceformat.OpenOptions) (*sortedSource, error) {
	dir := ""
	if o != nil {
		dir = o.TempDir
	}
	sorted, err := traceformat.Sorted(sourceReader{src}, dir)
	if err != nil {
		return nil, err
	}
	s := &sortedSource{source: src, sorted: sorted}
	s.next, s.stop = iter.Pull2(sorted.All())
	return s, nil
}

func (s *sortedSource) read(row *traceformat.Row) error {
	next, err, ok := s.next()
	if !ok {
		return io.EOF
	}
	if err != nil {
		return err
	}
	*row = *next
	return nil
}

func (s *sortedSource) Close() error {
	s.stop()
	return s.sorted.Close()
}

// sourceReader lets a source be sorted. Arrivals are still the source's stamps.
type sourceReader struct{ source }

func (r sourceReader) Header() *traceformat.Header { return new(traceformat.Header) }

func (r sourceReader) Close() error { return nil }

func (r sourceReader) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for {
			var row traceformat.Row
			switch err := r.read(&row); {
			case err == io.EOF:
				return
			case err != nil:
				yield(nil, err)
				return
			}
			if !yield(&row, nil) {
				return
			}
		}
	}
}
