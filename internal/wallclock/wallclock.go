// Package wallclock says by how much this machine's wall clock may be wrong.
// Machines that are to begin at one moment need to know; within a run nothing
// else asks for the time of day.
package wallclock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/beevik/ntp"
)

// Now is the time of day as this machine tells it. Tests put a clock that is
// wrong in its place.
var Now = time.Now

// A Check is a comparison of this machine's clock with another.
type Check struct {
	// Reference is the clock that it was compared with: an address without
	// credentials, or [Kernel].
	Reference string `json:"reference"`
	// Offset is the reference's clock minus this machine's.
	Offset time.Duration `json:"offset_ns"`
	// Bound is by how much Offset may be wrong: half of the quickest round trip,
	// and what the reference says of its own error.
	Bound time.Duration `json:"error_bound_ns"`
}

// Kernel is the Reference of what the time daemon of this machine told its
// kernel: the offset is then 0 as far as anybody knows.
const Kernel = "kernel"

// ErrUnsynchronised says that no time daemon keeps this machine's clock.
var ErrUnsynchronised = errors.New("no time daemon keeps this machine's clock")

// MaxSlew is how fast two clocks may part, in seconds per second: Linux slews
// clocks by at most 500 ppm (adjtimex(2)), and crystals are a tenth of that.
const MaxSlew = 500e-6

const (
	queries = 8 // the quickest counts
	timeout = 2 * time.Second
)

// NTP asks the server of an address ntp://host or ntp://host:port for the time.
func NTP(ctx context.Context, address string) (Check, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "ntp" || u.Hostname() == "" || u.Path != "" || u.User != nil || u.RawQuery != "" {
		return Check{}, fmt.Errorf("%q is not the address of a time server: want ntp://host or ntp://host:port", address)
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "123")
	}
	best, failed := Check{Reference: address, Bound: -1}, error(nil)
	for range queries {
		if err := ctx.Err(); err != nil {
			return Check{}, err
		}
		r, err := ntp.QueryWithOptions(host, ntp.QueryOptions{Timeout: timeout, GetSystemTime: func() time.Time { return Now() }})
		if err == nil {
			err = r.Validate()
		}
		if err != nil {
			failed = err
			continue
		}
		// RFC 5905's root distance holds the round trip of this exchange.
		if bound := max(r.RootDistance, r.RTT/2); best.Bound < 0 || bound < best.Bound {
			best.Offset, best.Bound = r.ClockOffset, bound
		}
	}
	if best.Bound < 0 {
		return Check{}, fmt.Errorf("%s does not tell the time: %w", address, failed)
	}
	return best, nil
}
