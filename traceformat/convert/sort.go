package convert

import (
	"fmt"
	"io"
	"slices"

	"reprise/traceformat"
)

// maxSorted bounds the rows that are held to be sorted, block ids included, in
// bytes.
const maxSorted = 2 << 30

// sortedSource yields the rows of a source in order of arrival.
type sortedSource struct {
	source
	rows []traceformat.Row
	err  error
}

// sortSource reads all of src. Rows before an error are yielded before it.
func sortSource(src source, name string, o *traceformat.OpenOptions) (*sortedSource, error) {
	s := &sortedSource{source: src}
	held := 0
	for s.err == nil {
		var row traceformat.Row
		if s.err = src.read(&row); s.err != nil {
			break
		}
		c := row.Clone()
		s.rows = append(s.rows, *c)
		if held += 1024 + len(c.Extra) + 8*len(c.PrefixBlocks); held > maxSorted {
			return nil, src.where(fmt.Errorf("rows are not in order of arrival and more than %d GiB would have to be held to sort them", maxSorted>>30))
		}
	}
	if s.err == io.EOF || len(s.rows) > 0 {
		slices.SortStableFunc(s.rows, func(a, b traceformat.Row) int { return a.Compare(&b) })
	}
	return s, nil
}

func (s *sortedSource) close() error { return nil }

func (s *sortedSource) read(row *traceformat.Row) error {
	if len(s.rows) == 0 {
		return s.err
	}
	*row, s.rows = s.rows[0], s.rows[1:]
	return nil
}
