package traceformat

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// DatasetID is the key of [Header.Extra] that all files of one dataset
	// share, DatasetPart the one that tells them apart.
	DatasetID   = "dataset.id"
	DatasetPart = "dataset.part"
)

const (
	// mergeFanIn is how many files of a dataset are read at a time. Where more
	// overlap in time, their rows are sorted in temporary files instead.
	mergeFanIn = 32
	// maxParts bounds the files of a dataset: 50 years of hours.
	maxParts = 1 << 19
	// maxDepth is how deep the folders of a dataset are looked into.
	maxDepth = 16
)

// A Part is one file of a dataset.
type Part struct {
	Name string // for messages, and Row.Origin where ids are made new
	// Open opens the file, each time it is called. A file that is not what it
	// was at the first call is an error.
	Open func(o *OpenOptions) (Reader, error)
}

// OpenParts opens several files as one trace. name is for messages.
//
// Rows come in the order of (arrival, id, lap). Where every file has an absolute
// start, rows keep their wall time and the trace starts at the earliest; files
// that all lack one share an axis. Files that overlap in time are merged, 32 at
// most at a time, others are read one after the other, so that memory and open
// files do not grow with their number. Files that are not sorted, or too many at
// a time, are sorted in [OpenOptions.TempDir].
//
// Files that were written as one dataset, and files in which no id occurs twice,
// are parts of one trace and keep their ids. Otherwise ids collide: they are made
// new as [Merge] makes them. Files that differ in tokenizer, block size or rules,
// or the key of their hashes are no one trace: they are refused by name.
func OpenParts(name string, parts []Part, o *OpenOptions) (Reader, error) {
	switch {
	case len(parts) == 0:
		return nil, fileError(name, errors.New("no traces in it"))
	case len(parts) > maxParts:
		return nil, fileError(name, fmt.Errorf("%d files are more than the %d that are read as one trace", len(parts), maxParts))
	}
	d := &dataset{name: name, opts: o}
	parts = slices.Clone(parts)
	slices.SortFunc(parts, func(a, b Part) int { return strings.Compare(a.Name, b.Name) })
	if err := d.survey(parts); err != nil {
		return nil, err
	}
	if err := d.join(); err != nil {
		return nil, fileError(name, err)
	}
	return d, nil
}

// A dataset reads several files as one trace.
type dataset struct {
	name   string
	opts   *OpenOptions
	header *Header
	parts  []*datasetPart
	used   bool
	lax    bool // leave rules to Validate
}

// A datasetPart is a file of a dataset, as the survey saw it.
type datasetPart struct {
	Part
	header *Header
	native bool
	rows   int64 // of a native file
	ids    span
	times  span // of arrivals, on the axis of the dataset once joined
	input  mergeInput
}

// A span is the least and the greatest value that a file may hold.
type span struct {
	lo, hi int64
	known  bool
}

var wide = span{lo: math.MinInt64, hi: math.MaxInt64}

// survey opens each file once, for its header and its bounds.
func (d *dataset) survey(parts []Part) error {
	for _, part := range parts {
		r, err := part.Open(d.opts)
		if err != nil {
			return fileError(part.Name, err)
		}
		p := &datasetPart{Part: part, header: r.Header().Clone(), ids: wide, times: wide}
		if f, ok := r.(*FileReader); ok {
			p.native, p.rows = true, f.NumRows()
			for _, b := range []struct {
				span   *span
				column string
			}{{&p.ids, "id"}, {&p.times, "arrival_ns"}} {
				if lo, hi, ok := f.bounds(b.column); ok {
					*b.span = span{lo, hi, true}
				}
			}
		}
		if err := r.Close(); err != nil {
			return err
		}
		if p.native && p.rows == 0 && len(parts) > 1 {
			continue
		}
		d.parts = append(d.parts, p)
	}
	if len(d.parts) == 0 {
		return fileError(d.name, ErrEmpty)
	}
	return nil
}

// join makes one header of all, and decides what becomes of ids.
func (d *dataset) join() error {
	if err := d.consistent(); err != nil {
		return err
	}
	heads := make([]namedHeader, len(d.parts))
	for i, p := range d.parts {
		heads[i] = namedHeader{p.Name, p.header}
	}
	h, err := mergeHeaders(heads)
	if err != nil {
		return err
	}
	h.Origin.Program = everywhere(heads, func(h *Header) string { return h.Origin.Program })
	h.Origin.Version = everywhere(heads, func(h *Header) string { return h.Origin.Version })
	for k, v := range heads[0].Extra {
		if k != DatasetID && k != DatasetPart && everywhere(heads, func(h *Header) string { return h.Extra[k] }) == v {
			if h.Extra == nil {
				h.Extra = map[string]string{}
			}
			h.Extra[k] = v
		}
	}
	collide, err := d.collide(heads)
	if err != nil {
		return err
	}
	if !collide {
		h.Blocks.Scheme = everywhere(heads, func(h *Header) string { return h.Blocks.Scheme })
	}
	d.header = h
	absolute, origins := !h.Start.IsZero(), d.origins()
	if !absolute && !collide {
		for _, p := range d.parts {
			h.Clock.Steps = append(h.Clock.Steps, p.header.Clock.Steps...)
		}
	}
	for k, p := range d.parts {
		p.input = mergeInput{Source: Source{Name: origins[k]}, index: k, count: len(d.parts), renumbered: collide, mix: collide && h.Keys == ""}
		if absolute {
			p.input.shift = p.header.Start.Sub(h.Start)
		}
		if p.times.known {
			p.times.lo += int64(p.input.shift)
			p.times.hi += int64(p.input.shift)
		}
	}
	return nil
}

// origins is what rows name their files, where ids are made new: no more of the
// path than tells the files apart.
func (d *dataset) origins() []string {
	names, seen := make([]string, len(d.parts)), map[string]bool{}
	for i, p := range d.parts {
		names[i] = p.Name[strings.LastIndexByte(filepath.ToSlash(p.Name), '/')+1:]
		seen[names[i]] = true
	}
	if len(seen) == len(names) {
		return names
	}
	for i, p := range d.parts {
		names[i] = strings.TrimPrefix(strings.TrimPrefix(p.Name, d.name), "/")
	}
	return names
}

// consistent names the first two files that cannot be parts of one trace.
func (d *dataset) consistent() error {
	for _, rule := range []struct {
		what string
		at   func(*Header) string
	}{
		{"the tokenizer", func(h *Header) string { return h.Tokenizer }},
		{"the block size", func(h *Header) string { return nonZero(h.Blocks.Size) }},
		{"the rule for a partial last block", func(h *Header) string { return string(h.Blocks.Partial) }},
		{"the bytes of a block", func(h *Header) string { return nonZero(h.Blocks.Bytes) }},
		{"what the lengths of later turns count", func(h *Header) string { return string(h.Lengths) }},
		{"the fingerprint of the key of client, session and block ids", func(h *Header) string { return h.Keys }},
	} {
		var first *datasetPart
		for _, p := range d.parts {
			switch v := rule.at(p.header); {
			case v == "":
			case first == nil:
				first = p
			case rule.at(first.header) != v:
				return fmt.Errorf("is not one trace: %s is %s in %s and %s in %s; read them apart", rule.what,
					rule.at(first.header), first.Name, v, p.Name)
			}
		}
	}
	for _, p := range d.parts[1:] {
		if a, b := d.parts[0], p; a.header.Start.IsZero() != b.header.Start.IsZero() {
			if b.header.Start.IsZero() {
				a, b = b, a
			}
			return fmt.Errorf("is not one trace: %s does not say when it started and %s does, so that they have no common axis; read them apart", a.Name, b.Name)
		}
	}
	return nil
}

func nonZero(n int32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// collide reports whether the files use an id twice.
func (d *dataset) collide(heads []namedHeader) (bool, error) {
	if len(d.parts) == 1 {
		return false, nil
	}
	if everywhere(heads, func(h *Header) string { return h.Extra[DatasetID] }) != "" {
		seen := map[string]string{}
		for _, p := range d.parts {
			part := p.header.Extra[DatasetPart]
			if other, ok := seen[part]; ok {
				return false, fmt.Errorf("%s and %s are the same part of one dataset: remove one of them", other, p.Name)
			}
			seen[part] = p.Name
		}
		return false, nil
	}
	byID := slices.Clone(d.parts)
	slices.SortFunc(byID, func(a, b *datasetPart) int { return cmp.Compare(a.ids.lo, b.ids.lo) })
	disjoint := true
	for i, p := range byID {
		disjoint = disjoint && p.ids.known && (i == 0 || byID[i-1].ids.hi < p.ids.lo)
	}
	if disjoint {
		return false, nil
	}
	// The bounds do not tell: two columns are read to know.
	seen := idSet{limit: maxIDBytes}
	o := *d.opts
	o.Columns, o.From, o.To = []string{"id", "lap"}, Opt[time.Duration]{}, Opt[time.Duration]{}
	for _, p := range d.parts {
		if !p.native {
			return true, nil // reading all of a foreign file for this would cost too much
		}
		r, err := p.Open(&o)
		if err != nil {
			return false, fileError(p.Name, err)
		}
		collides := false
		for row, err := range r.All() {
			if err != nil {
				r.Close()
				return false, err
			}
			fresh, ok := seen.add(row.ID, row.Lap)
			if collides = !fresh || !ok; collides {
				break
			}
		}
		if err := r.Close(); err != nil || collides {
			return collides, err
		}
	}
	return false, nil
}

// Native reports whether r reads files of this package's own format alone.
func Native(r Reader) bool {
	switch r := r.(type) {
	case *FileReader:
		return true
	case *dataset:
		return !slices.ContainsFunc(r.parts, func(p *datasetPart) bool { return !p.native })
	default:
		return false
	}
}

func (d *dataset) Header() *Header { return d.header }

func (d *dataset) Close() error { return nil }

func (d *dataset) All() iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		if d.used {
			yield(nil, fileError(d.name, errors.New("rows were read before: open the trace again")))
			return
		}
		d.used = true
		counts := Counts{}
		for _, group := range d.groups() {
			whole := false
			if len(group) == 1 && group[0].header.Sorted {
				whole = d.one(group[0], yield)
			} else {
				whole = d.several(group, yield)
			}
			if !whole {
				return
			}
			for _, p := range group {
				addCounts(&counts, p.header.Rows)
			}
		}
		if !d.opts.From.OK && !d.opts.To.OK {
			d.header.Rows = counts // of files that count while they are read, too
		}
	}
}

// groups cuts the files of interest into groups that follow each other in time.
func (d *dataset) groups() [][]*datasetPart {
	var wanted []*datasetPart
	for _, p := range d.parts {
		o := d.opts
		if p.times.known && (o.To.OK && p.times.lo >= int64(o.To.V) || o.From.OK && p.times.hi < int64(o.From.V)) {
			continue
		}
		wanted = append(wanted, p)
	}
	slices.SortStableFunc(wanted, func(a, b *datasetPart) int { return cmp.Compare(a.times.lo, b.times.lo) })
	var groups [][]*datasetPart
	var end int64
	for _, p := range wanted {
		if len(groups) == 0 || p.times.lo > end {
			groups, end = append(groups, nil), p.times.hi
		}
		last := len(groups) - 1
		groups[last] = append(groups[last], p)
		end = max(end, p.times.hi)
	}
	return groups
}

// open opens a file for its rows.
func (d *dataset) open(p *datasetPart) (Reader, error) {
	o := *d.opts
	if len(o.Columns) > 0 {
		o.Columns = slices.Concat(o.Columns, []string{"arrival_ns", "id", "lap"}) // what merging goes by
	}
	if o.From.OK {
		o.From.V -= p.input.shift
	}
	if o.To.OK && o.To.V < math.MaxInt64-maxArrival {
		o.To.V -= p.input.shift
	}
	r, err := p.Open(&o)
	if err != nil {
		return nil, fileError(p.Name, err)
	}
	if f, ok := r.(*FileReader); ok {
		f.lax = d.lax
	}
	return r, nil
}

// one yields the rows of a sorted file that no other overlaps.
func (d *dataset) one(p *datasetPart, yield func(*Row, error) bool) bool {
	r, err := d.open(p)
	if err != nil {
		yield(nil, err)
		return false
	}
	defer r.Close()
	in := p.input
	in.unordered = d.lax
	for row, err := range r.All() {
		if err == nil {
			err = in.adopt(row)
		}
		if err != nil {
			yield(nil, err)
			return false
		}
		if !yield(row, nil) {
			return false
		}
	}
	p.header.Rows = r.Header().Rows
	return true
}

// several yields the rows of files that overlap in time, or are not sorted.
func (d *dataset) several(group []*datasetPart, yield func(*Row, error) bool) bool {
	unsorted := slices.ContainsFunc(group, func(p *datasetPart) bool { return !p.header.Sorted })
	if unsorted || len(group) > mergeFanIn {
		sorted, err := Sorted(&chain{d, group}, d.opts.TempDir)
		if err != nil {
			yield(nil, err)
			return false
		}
		defer sorted.Close()
		for row, err := range sorted.All() {
			if !yield(row, err) || err != nil {
				return false
			}
		}
		return true
	}
	var inputs []*mergeInput
	defer func() {
		for _, in := range inputs {
			in.Reader.Close()
		}
	}()
	for _, p := range group {
		r, err := d.open(p)
		if err != nil {
			yield(nil, err)
			return false
		}
		in := p.input
		in.Reader = r
		inputs = append(inputs, &in)
	}
	if !mergeRows(inputs, yield) {
		return false
	}
	for i, p := range group {
		p.header.Rows = inputs[i].Reader.Header().Rows
	}
	return true
}

// A chain is the rows of files one after the other, for a sort.
type chain struct {
	d     *dataset
	group []*datasetPart
}

func (c *chain) Header() *Header { return c.d.header }

func (c *chain) Close() error { return nil }

func (c *chain) All() iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		for _, p := range c.group {
			r, err := c.d.open(p)
			if err != nil {
				yield(nil, err)
				return
			}
			in := p.input
			in.unordered = true
			for row, err := range r.All() {
				if err == nil {
					err = in.adopt(row)
				}
				if err != nil {
					row = nil
				}
				if !yield(row, err) || err != nil {
					r.Close()
					return
				}
			}
			p.header.Rows = r.Header().Rows
			if err := r.Close(); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// IsPattern reports whether name holds what makes a pattern of it: *, ? or [.
func IsPattern(name string) bool { return strings.ContainsAny(name, "*?[") }

// openPattern opens the files that a pattern matches as one trace.
func openPattern(pattern string, o *OpenOptions) (Reader, error) {
	names, err := filepath.Glob(pattern)
	switch {
	case err != nil:
		return nil, fmt.Errorf("not a pattern: %w", err)
	case len(names) == 0:
		return nil, fmt.Errorf("no file matches: %w", fs.ErrNotExist)
	case len(names) == 1:
		return open(names[0], o)
	}
	var files []string
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		switch run := filepath.Join(name, RunTrace); {
		case !info.IsDir():
			files = append(files, name)
		case exists(run):
			files = append(files, run)
		default:
			if files, err = appendFolder(files, name, maxDepth); err != nil {
				return nil, err
			}
		}
	}
	return openFiles(pattern, files, o)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// openFolder opens the Parquet files of a folder as one trace.
func openFolder(dir string, o *OpenOptions) (Reader, error) {
	files, err := appendFolder(nil, dir, maxDepth)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, ErrDirectory
	}
	return openFiles(dir, files, o)
}

// appendFolder appends the Parquet files of a folder and of those in it that are
// called key=value, as Hive, Spark and DuckDB lay a dataset out. As for these,
// names that start with a dot or an underscore are not part of it.
func appendFolder(files []string, dir string, depth int) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, pathless(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch PartKind(e.Name(), e.IsDir()) {
		case PartFile:
			files = append(files, path)
		case PartFolder:
			if depth == 0 {
				return nil, fmt.Errorf("has more than %d folders in each other", maxDepth)
			}
			if files, err = appendFolder(files, path, depth-1); err != nil {
				return nil, err
			}
		}
		if len(files) > maxParts {
			return nil, fmt.Errorf("holds more than the %d files that are read as one trace", maxParts)
		}
	}
	return files, nil
}

// Unfinished is the file that a dataset in object storage holds for as long as it
// is being uploaded: objects appear one by one, and a part of a dataset looks
// like one.
const Unfinished = "_unfinished"

// What an entry of a folder is to a dataset.
const (
	PartNone   = iota // nothing
	PartFile          // one of its files
	PartFolder        // a folder of such
)

// PartKind says what an entry of a folder is to a dataset.
func PartKind(name string, folder bool) int {
	switch {
	case strings.HasPrefix(name, "."), strings.HasPrefix(name, "_"):
		return PartNone
	case folder && strings.Contains(name, "="):
		return PartFolder
	case !folder && strings.HasSuffix(name, ".parquet"):
		return PartFile
	default:
		return PartNone
	}
}

// openFiles opens local files as one trace.
func openFiles(name string, files []string, o *OpenOptions) (Reader, error) {
	parts := make([]Part, len(files))
	for i, path := range files {
		var first os.FileInfo
		parts[i] = Part{Name: path, Open: func(o *OpenOptions) (Reader, error) {
			info, err := os.Stat(path)
			if err != nil {
				return nil, pathless(err)
			}
			if first == nil {
				first = info
			} else if info.Size() != first.Size() || !info.ModTime().Equal(first.ModTime()) || !os.SameFile(info, first) {
				return nil, errors.New("has changed since the trace was opened: start again when nobody writes it")
			}
			return openPath(path, o)
		}}
	}
	return OpenParts(name, parts, o)
}
