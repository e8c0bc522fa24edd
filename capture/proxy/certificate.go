package proxy

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"
)

// A certificate is a pair of files that may be replaced while it is in use.
type certificate struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	pair    *tls.Certificate
	state   [2]fileState // what pair was read from
	looked  time.Time
	loads   int64
	failed  int64
	refused [2]fileState // what could not be used, so that it is said once
}

type fileState struct {
	mtime time.Time
	size  int64
}

// look is how often the files are looked at, at most.
const look = time.Second

func newCertificate(cert, key string, log *slog.Logger) (*certificate, error) {
	c := &certificate{cert: cert, key: key, log: log}
	c.state = c.stat()
	c.looked = time.Now()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	c.pair, c.loads = &pair, 1
	return c, nil
}

func (c *certificate) stat() (s [2]fileState) {
	for i, name := range []string{c.cert, c.key} {
		if info, err := os.Stat(name); err == nil {
			s[i] = fileState{info.ModTime(), info.Size()}
		}
	}
	return s
}

// get serves tls.Config.GetCertificate. Files that have changed are read; while
// they do not make a pair, as between the writing of one and the other, the
// old one stays in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= look {
		c.reload(false)
	}
	return c.pair, nil
}

// Reload looks at the files now.
func (c *certificate) Reload() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reload(true)
}

// reload is called with c.mu held.
func (c *certificate) reload(force bool) {
	c.looked = time.Now()
	now := c.stat()
	if now == c.state && !force {
		return
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		c.failed++
		if now != c.refused {
			c.refused = now
			c.log.Error("the new certificate cannot be used, the old one stays", "error", err)
		}
		return
	}
	c.pair, c.state = &pair, now
	c.loads++
	c.log.Info("the certificate was read again")
}

// stats are the loads that worked and that did not, and the end of validity.
func (c *certificate) stats() (loads, failed int64, expires time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pair.Leaf != nil {
		expires = c.pair.Leaf.NotAfter
	}
	return c.loads, c.failed, expires
}
