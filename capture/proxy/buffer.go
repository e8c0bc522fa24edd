package proxy

import (
	"sync"
	"time"
)

// Sizes of buffers. Few are held at a time: a stream that waits for its next
// token holds none.
const (
	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
)

type buffer struct{ b []byte }

var (
	smallBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, smallBuffer)} }}
	largeBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, largeBuffer)} }}
)

func getBuffer(large bool) *buffer {
	if large {
		return largeBuffers.Get().(*buffer)
	}
	return smallBuffers.Get().(*buffer)
}

func (b *buffer) put() {
	switch cap(b.b) {
	case smallBuffer:
		smallBuffers.Put(b)
	case largeBuffer:
		largeBuffers.Put(b)
	}
}

// An anchor ties the monotonic clock to the wall clock once, so that the times
// of a recording never step, whatever happens to the wall clock.
type anchor struct {
	base time.Time
	wall int64
}

func newAnchor() anchor {
	now := time.Now()
	return anchor{now, now.UnixNano()}
}

// now is in nanoseconds since the epoch.
func (a anchor) now() int64 { return a.wall + int64(time.Since(a.base)) }
