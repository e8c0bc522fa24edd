package proxy

import (
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"time"
)

// newTransport is the client for upstreams that speak TLS or HTTP/2.
func newTransport(o *Options) *http.Transport {
	t := &http.Transport{
		// No proxy: an environment variable must not send production traffic
		// elsewhere.
		DialContext:            (&net.Dialer{Timeout: o.ConnectTimeout}).DialContext,
		TLSClientConfig:        o.UpstreamTLS,
		TLSHandshakeTimeout:    o.ConnectTimeout,
		DisableCompression:     true,
		MaxIdleConns:           o.MaxConnections,
		MaxIdleConnsPerHost:    o.MaxConnections,
		IdleConnTimeout:        o.UpstreamIdle,
		ResponseHeaderTimeout:  o.HeaderTimeout,
		ExpectContinueTimeout:  continueAfter,
		MaxResponseHeaderBytes: o.MaxHeader,
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second},
	}
	switch {
	case o.UpstreamHTTP2 && o.Upstream.Scheme == "http":
		t.Protocols.SetUnencryptedHTTP2(true)
	case o.UpstreamHTTP2:
		t.Protocols.SetHTTP2(true)
	default:
		t.Protocols.SetHTTP1(true)
		t.Protocols.SetHTTP2(true)
	}
	return t
}

// A tee is a request body that net/http's client reads.
type tee struct {
	io.ReadCloser
	x *exchange
}

func (b tee) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	now := b.x.p.clock.now()
	b.x.tap.requestBody(now, p[:n])
	if err == io.EOF {
		b.x.requestEnd(now)
	}
	return n, err
}

// overTransport carries the exchange with net/http's client.
func (x *exchange) overTransport() {
	p, r := x.p, x.r
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			if status != http.StatusSwitchingProtocols {
				x.interim(status, http.Header(h))
			}
			return nil
		},
	})
	u := &url.URL{Scheme: p.o.Upstream.Scheme, Host: p.o.Upstream.Host}
	uri := target(r)
	if strings.HasPrefix(uri, "//") {
		// Opaque would take it for an authority.
		u.Path, u.RawPath, u.RawQuery, u.ForceQuery = r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.URL.ForceQuery
		if u.RequestURI() != uri {
			p.refuse(x.w, http.StatusBadRequest, "malformed request target", "bad_request")
			return
		}
	} else {
		u.Opaque = uri
	}
	out := (&http.Request{
		Method: r.Method, URL: u, Host: r.Host, Header: p.cloneHeader(r), Trailer: r.Trailer,
		ContentLength: r.ContentLength,
	}).WithContext(ctx)
	x.tap.requestHead(p.clock.now(), r, headSize(r))
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		if r.ProtoMajor == 1 {
			_ = http.NewResponseController(x.w).EnableFullDuplex() // HTTP/1.1 always can
		}
		out.Body = tee{r.Body, x}
		// The transport may still be reading when an early answer is complete.
		defer r.Body.Close()
	} else {
		x.requestEnd(p.clock.now())
	}
	resp, err := p.transport.RoundTrip(out)
	if err != nil {
		x.failed(err)
		return
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		up, ok := resp.Body.(io.ReadWriteCloser)
		if !ok || upgrade(r) == "" {
			resp.Body.Close()
			x.failed(errUnasked)
			return
		}
		x.tap.responseHead(p.clock.now(), resp.StatusCode, resp.Header)
		x.tunnel(resp, up)
		return
	}
	defer resp.Body.Close()
	if err := x.relay(resp, nil); err != nil {
		x.broken(err)
	}
}

// headSize is about how much memory the head of r takes.
func headSize(r *http.Request) int {
	size := len(r.RequestURI)
	for name, values := range r.Header {
		size += len(name)
		for _, v := range values {
			size += len(v) + 32
		}
	}
	return size
}
