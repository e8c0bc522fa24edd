package traceformat

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Format is a foreign trace format that [Open] can read. Formats are told
// apart by content, never by the name of a file; where two claim the same file,
// Open says so and asks for the name of one.
type Format struct {
	// Name is what --format takes and Origin.Dialect says.
	Name string

	// Detect reports whether a file that starts with head is in this format.
	// head holds the first 64 KiB, decompressed, or all of a shorter file. It
	// must be strict: a file that several formats claim is refused.
	Detect func(head []byte) bool

	// Open reads src from its start. name is for messages. The caller closes
	// src after the Reader, so that Reader.Close frees only what Open made.
	// It may return before it has read anything but what Header needs.
	Open func(src io.Reader, name string, o *OpenOptions) (Reader, error)

	// DetectParquet and OpenParquet take the place of Detect and Open for
	// formats that are Parquet files of another schema. columns holds the
	// names of the top-level columns. path is a regular file, possibly a
	// temporary copy that lives until the Reader is closed; name is for
	// messages.
	DetectParquet func(columns []string) bool
	OpenParquet   func(path, name string, o *OpenOptions) (Reader, error)
}

// OpenOptions say how to read a trace. They are set through [ReadOption]s.
type OpenOptions struct {
	// Format names the format of the content, so that none is detected.
	Format string
	// Dequantise spreads arrivals that a coarse clock put on one tick over
	// that tick. Foreign formats honour it; native files stand as recorded.
	Dequantise bool
	// Params holds what a format or scheme has to be told beyond the content
	// (a time zone, a tokenizer, a seed), under names that each one documents.
	Params map[string]string
	// Columns holds the columns to read; nil is all. Formats other than the
	// native one may fill more.
	Columns []string
	// From and To bound the arrivals of interest: row groups of a native file
	// that lie outside [From, To) are skipped, so that rows outside may or may
	// not be yielded.
	From, To Opt[time.Duration]
	// ignoreUnknown reads past columns that a native file should not have.
	ignoreUnknown bool
	// ahead decodes native files in a goroutine of their own.
	ahead bool
	// TempDir is where streams are spooled that need random access, and sorts
	// spill; empty is the system's folder for temporary files.
	TempDir string
	// Stdin is what the name "-" reads; nil is os.Stdin.
	Stdin io.Reader
}

// A ReadOption changes how a trace is read.
type ReadOption func(*OpenOptions)

// WithFormat names the format of the content instead of detecting it.
func WithFormat(name string) ReadOption { return func(o *OpenOptions) { o.Format = name } }

// Dequantise asks importers to spread arrivals within the tick of their clock.
func Dequantise() ReadOption { return func(o *OpenOptions) { o.Dequantise = true } }

// Param hands a named setting to a format or scheme.
func Param(key, value string) ReadOption {
	return func(o *OpenOptions) {
		if o.Params == nil {
			o.Params = map[string]string{}
		}
		o.Params[key] = value
	}
}

// Columns restricts reading to the named columns. Fields of other columns stay
// unknown, the zero value. Arrival, id and lap are part of the key of a row and
// are not read unless named.
func Columns(names ...string) ReadOption {
	return func(o *OpenOptions) { o.Columns = append(o.Columns, names...) }
}

// IgnoreUnknownColumns reads a native file that has columns beyond those of
// this package, without them.
func IgnoreUnknownColumns() ReadOption { return func(o *OpenOptions) { o.ignoreUnknown = true } }

// Within skips row groups whose arrivals all lie outside [from, to).
func Within(from, to time.Duration) ReadOption {
	return func(o *OpenOptions) { o.From, o.To = Some(from), Some(to) }
}

// Ahead decodes native files in a goroutine of their own, a few thousand rows
// ahead of who asks for them: where decoding takes as long as what is done with
// the rows, and there is a second core, that is twice as fast.
func Ahead() ReadOption { return func(o *OpenOptions) { o.ahead = true } }

// TempDir says where streams are spooled and sorts spill.
func TempDir(dir string) ReadOption { return func(o *OpenOptions) { o.TempDir = dir } }

// Stdin sets what the name "-" reads.
func Stdin(r io.Reader) ReadOption { return func(o *OpenOptions) { o.Stdin = r } }

func readOptions(opts []ReadOption) *OpenOptions {
	o := new(OpenOptions)
	for _, opt := range opts {
		opt(o)
	}
	return o
}

// A SchemeFunc opens a name that starts with the prefix it was registered for.
type SchemeFunc func(name string, o *OpenOptions) (Reader, error)

// NativeFormat is the name of this package's own Parquet format.
const NativeFormat = "reprise"

var registry struct {
	sync.RWMutex
	formats []Format
	schemes []scheme
}

type scheme struct {
	prefix string
	open   SchemeFunc
}

// RegisterFormat adds a format to those that [Open] knows. It panics on a name
// that is taken or a format that cannot be opened: both are mistakes of the
// program and not of its input.
func RegisterFormat(f Format) {
	registry.Lock()
	defer registry.Unlock()
	if f.Name == "" || f.Open == nil && f.OpenParquet == nil {
		panic("traceformat: a format needs a name and a way to open it")
	}
	if f.Name == NativeFormat || slices.ContainsFunc(registry.formats, func(g Format) bool { return g.Name == f.Name }) {
		panic(fmt.Sprintf("traceformat: format %q is registered twice", f.Name))
	}
	registry.formats = append(registry.formats, f)
	slices.SortFunc(registry.formats, func(a, b Format) int { return strings.Compare(a.Name, b.Name) })
}

// RegisterScheme makes [Open] hand names that start with prefix ("model:",
// "s3://") to open.
func RegisterScheme(prefix string, open SchemeFunc) {
	registry.Lock()
	defer registry.Unlock()
	if prefix == "" || open == nil {
		panic("traceformat: a scheme needs a prefix and a way to open it")
	}
	if slices.ContainsFunc(registry.schemes, func(s scheme) bool { return s.prefix == prefix }) {
		panic(fmt.Sprintf("traceformat: scheme %q is registered twice", prefix))
	}
	registry.schemes = append(registry.schemes, scheme{prefix, open})
}

// Formats returns the names of the formats that Open knows, sorted, the native
// one included.
func Formats() []string {
	names := []string{NativeFormat}
	for _, f := range registeredFormats() {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return names
}

func registeredFormats() []Format {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Clone(registry.formats)
}
