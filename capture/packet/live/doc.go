// Package live captures from a network interface of Linux: a ring of AF_PACKET
// (TPACKET_V3) that the kernel fills and this process reads, with a filter in
// the kernel, and no library in C.
//
// What needs rights is opening the socket, and nothing after that. So a process
// opens it, gives up its rights for good with [Reexec], and reads the ring as
// somebody who can do no harm; see privilege_linux.go.
package live

import (
	"errors"
	"time"
)

// Options of [Open].
type Options struct {
	Interface string   // "any": all
	Ports     []uint16 // of servers, for the filter in the kernel; empty: any TCP
	Ring      int      // bytes, default 64 MiB
}

const (
	// DefaultRing is the default of Options.Ring.
	DefaultRing = 64 << 20
	// A block is handed over when it is full or retireAfter old.
	blockBytes  = 1 << 20
	retireAfter = 50 * time.Millisecond
	// snapLength is larger than any packet that segmentation offload makes.
	snapLength = 1 << 18
)

// ErrUnsupported is returned where there is no AF_PACKET.
var ErrUnsupported = errors.New("capturing from an interface takes Linux; --read takes files anywhere")

// Stats are the kernel's counters since the ring was opened.
type Stats struct {
	Received int64 `json:"received"` // passed the filter, dropped ones included
	Dropped  int64 `json:"dropped"`  // found the ring full
	Freezes  int64 `json:"freezes"`  // times the ring was full
	Copies   int64 `json:"copies"`   // outgoing copies of loopback packets, passed over
}
