package agent

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A wrong time of day is found within the bound, also where one way takes longer
// than the other.
func TestWallClock(t *testing.T) {
	srv := httptest.NewServer(NewServer(Options{}, nil).Handler())
	defer srv.Close()
	relay := newRelay(t, strings.TrimPrefix(srv.URL, "http://"), func() time.Duration { return 6 * time.Millisecond }, func() time.Duration { return time.Millisecond })
	for _, address := range []string{srv.URL, "http://" + relay.l.Addr().String()} {
		r, err := NewRemote(RemoteOptions{URL: address})
		if err != nil {
			t.Fatal(err)
		}
		c, err := r.WallClock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c.Offset.Abs() > c.Bound || c.Bound <= 0 || c.Reference != address {
			t.Errorf("%s: %v ± %v, and it is the same clock", c.Reference, c.Offset, c.Bound)
		}
		if address != srv.URL && c.Bound < 3*time.Millisecond {
			t.Errorf("a round trip of 7 ms bounds the error to %v", c.Bound)
		}
		r.Close()
	}
}
