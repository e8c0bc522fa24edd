package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Proxy passes requests on to one upstream and records them.
type Proxy struct {
	o         Options
	clock     anchor
	up        *upstream       // plain HTTP/1.1
	transport *http.Transport // all else
	cert      *certificate    // nil: no TLS
	rec       *recording      // nil: nothing is recorded
	tunnels   tunnels
	m         meters
	draining  atomic.Bool
}

// New returns a proxy. If it records, the first output is open after that.
func New(o Options) (*Proxy, error) {
	o.setDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	p := &Proxy{o: o, clock: newAnchor()}
	if o.Upstream.Scheme == "http" && !o.UpstreamHTTP2 {
		addr := o.Upstream.Host
		if o.Upstream.Port() == "" {
			addr = net.JoinHostPort(o.Upstream.Hostname(), "80")
		}
		p.up = newUpstream(addr, &p.o)
	} else {
		p.transport = newTransport(&p.o)
	}
	if o.Certificate != "" {
		var err error
		if p.cert, err = newCertificate(o.Certificate, o.CertificateKey, o.Log); err != nil {
			return nil, err
		}
	}
	if o.Record != nil {
		p.rec = newRecording(*o.Record, o.Log)
		if err := p.rec.start(p.clock.now()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Reload reads the certificate again and goes on in a new file.
func (p *Proxy) Reload() {
	p.cert.Reload()
	if p.rec != nil {
		select {
		case p.rec.roll <- struct{}{}:
		default:
		}
	}
}

// Serve serves the listeners until ctx ends, then stops accepting, lets streams
// end for as long as Options.Drain, closes what is left and finishes the
// recording. It returns nil after that, or the error of a listener, or an
// [*UnfinishedError]. It is called once.
func (p *Proxy) Serve(ctx context.Context, listeners ...net.Listener) error {
	srv := p.server()
	slots, stop, once := make(chan struct{}, p.o.MaxConnections), make(chan struct{}), new(sync.Once)
	failed := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		l := &limiter{Listener: l, p: p, slots: slots, stop: stop, once: once}
		serving.Go(func() {
			if p.cert != nil {
				failed <- srv.ServeTLS(l, "", "")
			} else {
				failed <- srv.Serve(l)
			}
		})
	}
	watch, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	if p.rec != nil {
		watching.Go(func() { p.rec.run(watch, p.clock.now) })
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	p.drain(srv)
	serving.Wait()
	stopWatch()
	watching.Wait()
	if p.rec != nil {
		err = errors.Join(err, p.rec.stop(stopRecording))
	}
	return err
}

// stopRecording is how long the last file may take: sorting a day of traffic
// takes a while.
const stopRecording = 5 * time.Minute

// drain ends the server.
func (p *Proxy) drain(srv *http.Server) {
	p.draining.Store(true)
	p.o.Log.Info("no new connections are taken", "streams", p.m.streams.Load(), "for_at_most", p.o.Drain)
	deadline := time.Now().Add(p.o.Drain)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		p.o.Log.Warn("streams are cut off", "streams", p.m.streams.Load())
		srv.Close()
	}
	p.tunnels.end(deadline)
	// Handlers of closed connections notice it at once.
	for end := time.Now().Add(5 * time.Second); p.m.streams.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if p.up != nil {
		p.up.close()
	} else {
		p.transport.CloseIdleConnections()
	}
}

func (p *Proxy) server() *http.Server {
	srv := &http.Server{
		Handler:                      p,
		ReadHeaderTimeout:            p.o.ReadHeader,
		IdleTimeout:                  p.o.Idle,
		MaxHeaderBytes:               int(p.o.MaxHeader),
		ConnContext:                  withConn,
		DisableGeneralOptionsHandler: true, // OPTIONS * is the upstream's to answer
		ErrorLog:                     log.New((*complaints)(p), "", 0),
		Protocols:                    new(http.Protocols),
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: 1000},
	}
	srv.Protocols.SetHTTP1(true)
	if p.cert != nil {
		srv.Protocols.SetHTTP2(true)
		srv.TLSConfig = &tls.Config{GetCertificate: p.cert.get, MinVersion: tls.VersionTLS12}
	} else {
		srv.Protocols.SetUnencryptedHTTP2(true)
	}
	return srv
}

// complaints are what net/http would log: addresses, and values that clients
// send. They are counted instead.
type complaints Proxy

func (c *complaints) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "TLS handshake error") {
		c.m.tlsErrors.Add(1)
	}
	if strings.Contains(string(line), "Accept error") {
		c.o.Log.Error("a connection could not be accepted, and accepting is tried again: is the limit of open files reached?")
	}
	return len(line), nil
}
