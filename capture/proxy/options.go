package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// Options of a [Proxy]. Zero values are the defaults named here.
type Options struct {
	Upstream      *url.URL    // scheme and host: the one server that is talked to
	UpstreamHTTP2 bool        // HTTP/2 alone, by prior knowledge (h2c) or over TLS
	UpstreamTLS   *tls.Config // for an https upstream; nil: the system's authorities

	Certificate, CertificateKey string // files: serve TLS
	Forwarded                   bool   // add X-Forwarded-For, -Proto and -Host

	MaxConnections int           // client connections at a time (16384)
	MaxHeader      int64         // bytes of a head, either way (1 MiB)
	ReadHeader     time.Duration // a client has to send a head (10 s)
	Idle           time.Duration // a client connection may be without a request (2 min)
	ConnectTimeout time.Duration // for a connection to the upstream (5 s)
	HeaderTimeout  time.Duration // for the upstream's head (0: none, as a prefill can take minutes)
	UpstreamIdle   time.Duration // an upstream connection is used again after (4 s: uvicorn closes at 5)
	Drain          time.Duration // streams may take after a stop (10 min)

	Record *RecordOptions // nil: a plain proxy
	Log    *slog.Logger   // nil: nothing is logged
}

func (o *Options) setDefaults() {
	def(&o.MaxConnections, 16384)
	def(&o.MaxHeader, 1<<20)
	def(&o.ReadHeader, 10*time.Second)
	def(&o.Idle, 2*time.Minute)
	def(&o.ConnectTimeout, 5*time.Second)
	def(&o.UpstreamIdle, 4*time.Second)
	def(&o.Drain, 10*time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Validate reports every problem with o.
func (o *Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	if o.Upstream == nil {
		errs = append(errs, errors.New("no upstream"))
	} else {
		u := o.Upstream
		check(u.Scheme == "http" || u.Scheme == "https", "the upstream's scheme is %q, want http or https", u.Scheme)
		check(u.Host != "", "the upstream names no host")
		check(u.User == nil, "the upstream holds credentials: the clients' are passed on, and there are no others")
		check((u.Path == "" || u.Path == "/") && u.RawQuery == "" && u.Fragment == "", "the upstream has a path or a query: paths are passed on as they come")
	}
	check((o.Certificate == "") == (o.CertificateKey == ""), "TLS takes a certificate and its key")
	check(o.MaxConnections > 0, "%d connections at most, want at least 1", o.MaxConnections)
	check(o.MaxHeader >= 4<<10, "heads of %d bytes at most, want at least 4 KiB", o.MaxHeader)
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"read-header", o.ReadHeader}, {"idle", o.Idle}, {"connect", o.ConnectTimeout}, {"upstream-header", o.HeaderTimeout}, {"upstream-idle", o.UpstreamIdle}, {"drain", o.Drain}} {
		check(d.d >= 0, "the %s time is %v, negative", d.name, d.d)
	}
	return errors.Join(errs...)
}
