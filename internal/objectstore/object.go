package objectstore

import (
	"cmp"
	"context"
	"io"
	"slices"
	"sync"

	"gocloud.dev/blob"

	"reprise/traceformat"
)

const (
	// gap is what is read and thrown away rather than asked for apart: about
	// what arrives in the time of a round trip.
	gap = 512 << 10
	// budget is how much of a row group is fetched before it is asked for; the
	// rest comes in pieces of pieceSize, of which maxPieces are kept.
	budget    = 16 << 20
	pieceSize = 1 << 20
	maxPieces = 16
	// endSize is what is fetched of the start and the end when an object is
	// opened: what it is, and the footer with the bounds of a few hundred row
	// groups.
	headSize, tailSize = 64 << 10, 512 << 10
)

// An object is one that is read in ranges. It is safe for concurrent use.
type object struct {
	ctx    context.Context
	cancel context.CancelFunc
	bucket *blob.Bucket
	name   *name
	attrs  *blob.Attributes

	mu     sync.Mutex
	ends   []*window    // start and end, for as long as it is open
	groups [2][]*window // of the last two calls of Prefetch
	pieces []*window    // on demand, the most recently used last
	work   sync.WaitGroup
}

var _ traceformat.Object = (*object)(nil)

// A window is a part of an object that was fetched, or is being.
type window struct {
	from, to int64
	once     sync.Once
	data     []byte
	err      error
}

func (w *window) fetch(o *object) ([]byte, error) {
	w.once.Do(func() { w.data, w.err = readRange(o.ctx, o.bucket, o.name, o.attrs, w.from, w.to) })
	return w.data, w.err
}

// openObject opens an object as attrs describes it. Closing it closes the
// bucket.
func openObject(b *blob.Bucket, n *name, attrs *blob.Attributes) *object {
	o := &object{bucket: b, name: n, attrs: attrs}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	tail := max(0, attrs.Size-tailSize)
	if tail <= headSize {
		tail = 0
	} else {
		o.ends = append(o.ends, &window{from: 0, to: headSize})
	}
	o.ends = append(o.ends, &window{from: tail, to: attrs.Size})
	return o
}

func (o *object) Size() int64 { return o.attrs.Size }

// ReadAt reads what is fetched already from memory.
func (o *object) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		if off >= o.attrs.Size {
			return n, io.EOF
		}
		w := o.find(off)
		data, err := w.fetch(o)
		if err != nil {
			return n, err
		}
		k := copy(p[n:], data[off-w.from:])
		n, off = n+k, off+int64(k)
	}
	return n, nil
}

// find returns a window that holds the byte at off, a new piece if there is none.
func (o *object) find(off int64) *window {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, windows := range [][]*window{o.groups[1], o.groups[0], o.ends} {
		for _, w := range windows {
			if w.from <= off && off < w.to {
				return w
			}
		}
	}
	for i, w := range o.pieces {
		if w.from <= off && off < w.to {
			o.pieces = append(slices.Delete(o.pieces, i, i+1), w)
			return w
		}
	}
	if len(o.pieces) == maxPieces {
		o.pieces = slices.Delete(o.pieces, 0, 1)
	}
	w := &window{from: off, to: min(off+pieceSize, o.attrs.Size)}
	o.pieces = append(o.pieces, w)
	return w
}

// Prefetch fetches ranges together, in the background. Those of the call before
// are kept, since they may still be read from.
func (o *object) Prefetch(ranges []traceformat.Range) {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b traceformat.Range) int { return cmp.Compare(a.From, b.From) })
	var windows []*window
	var size int64
	for _, r := range ranges {
		if last := len(windows) - 1; last >= 0 && r.From <= windows[last].to+gap {
			w := windows[last]
			grown := max(w.to, r.To)
			if size+grown-w.to > budget {
				break
			}
			size += grown - w.to
			w.to = grown
			continue
		}
		if size+r.To-r.From > budget {
			break
		}
		size += r.To - r.From
		windows = append(windows, &window{from: r.From, to: r.To})
	}
	o.mu.Lock()
	o.groups[0], o.groups[1] = o.groups[1], windows
	o.mu.Unlock()
	for _, w := range windows {
		o.work.Go(func() { w.fetch(o) })
	}
}

// Close ends what is being fetched and closes the bucket.
func (o *object) Close() error {
	o.cancel()
	o.work.Wait()
	o.mu.Lock()
	b := o.bucket
	o.groups, o.pieces, o.ends = [2][]*window{}, nil, nil
	o.bucket = nil
	o.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.Close()
}
