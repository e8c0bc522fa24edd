//go:build !linux

package live

import (
	"time"

	"reprise/capture/packet/frame"
)

// A Socket is an open packet socket; there are none here.
type Socket struct{}

// Open returns [ErrUnsupported].
func Open(Options) (*Socket, error) { return nil, ErrUnsupported }

// Inherited returns nil.
func Inherited() (*Socket, error) { return nil, nil }

// Reexec returns [ErrUnsupported].
func (s *Socket) Reexec(string) error { return ErrUnsupported }

// Map returns [ErrUnsupported].
func (s *Socket) Map() (*Ring, error) { return nil, ErrUnsupported }

// A Ring reads what a socket captures.
type Ring struct{}

// Close does nothing.
func (r *Ring) Close() error { return nil }

// Read returns [ErrUnsupported].
func (r *Ring) Read(time.Duration, func(*frame.Packet)) (int, error) { return 0, ErrUnsupported }

// Stats returns [ErrUnsupported].
func (r *Ring) Stats() (Stats, error) { return Stats{}, ErrUnsupported }
