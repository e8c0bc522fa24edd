package capture

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseSample reads a share such as "1/16", and "session" or "client". The
// empty share is everything.
func ParseSample(share, by string) (Sample, error) {
	var s Sample
	switch by {
	case "", "session":
	case "client":
		s.ByClient = true
	default:
		return s, fmt.Errorf("sample by %q, want session or client", by)
	}
	if share == "" {
		return s, nil
	}
	one, of, ok := strings.Cut(share, "/")
	n, err := strconv.ParseUint(of, 10, 32)
	if !ok || one != "1" || err != nil || n == 0 {
		return s, fmt.Errorf("sample %q, want 1/N with N of 1 or more", share)
	}
	s.Of = n
	return s, nil
}

// keeps reports whether what text names is in the sample.
func (s Sample) keeps(k *Key, text string) bool {
	return s.Of <= 1 || k.id(domainSample, text)%s.Of == 0
}
