package traceformat

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// An Object is a file that is no file of this machine: an object in storage, of
// which ranges can be read and each read costs a round trip.
type Object interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// Prefetch says which ranges are read soon, in no order: they are best
	// fetched together. Those of the call before may still be read.
	Prefetch(ranges []Range)
}

// A Range is the bytes [From, To) of an object.
type Range struct{ From, To int64 }

// OpenObject opens the trace that an object holds, as [Open] does a file's. The
// Reader closes the object; on error the caller still has to.
func OpenObject(obj Object, name string, o *OpenOptions) (Reader, error) {
	return openStream(&objectStream{io.NewSectionReader(obj, 0, obj.Size()), obj}, name, o)
}

// An objectStream reads an object from its start.
type objectStream struct {
	*io.SectionReader
	Object Object
}

func (s *objectStream) Close() error { return s.Object.Close() }

// cloudSchemes are those that a program built with the tag cloud registers.
var cloudSchemes = []string{"s3", "gs", "azblob"}

// noScheme is the error of a name whose scheme nothing was registered for.
func noScheme(scheme string) error {
	if slices.Contains(cloudSchemes, scheme) {
		return fmt.Errorf("this build has no object storage: make cloud builds programs that read and write %s://", strings.Join(cloudSchemes, "://, "))
	}
	return fmt.Errorf("no scheme is called %s", scheme)
}
