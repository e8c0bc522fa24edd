package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

// A bufferedConn is a connection of which some bytes were read already.
type bufferedConn struct {
	net.Conn
	br *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.br.Read(p) }

func (c *bufferedConn) CloseWrite() error { return closeWrite(c.Conn) }

// closeWrite ends one direction, or the connection where that is not possible.
func closeWrite(c any) error {
	switch c := c.(type) {
	case interface{ CloseWrite() error }:
		return c.CloseWrite()
	case io.Closer:
		return c.Close()
	}
	return nil
}

// tunnel carries what follows 101 (Switching Protocols) both ways, untouched
// and unrecorded, until both sides have ended it. It closes up.
func (x *exchange) tunnel(resp *http.Response, up io.ReadWriteCloser) {
	defer up.Close()
	p := x.p
	x.tap.end(p.clock.now(), 0)
	conn, brw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		p.refuse(x.w, http.StatusBadGateway, "the upstream switched protocols unasked", "bad_gateway")
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	if !p.tunnels.add(conn, up) {
		return
	}
	defer p.tunnels.remove(conn)
	p.m.status(resp.StatusCode)

	b := []byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
	drop := listed(resp.Header)
	for name, values := range resp.Header {
		if hop(name) && name != "Upgrade" || slices.Contains(drop, name) && name != "Upgrade" {
			continue
		}
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	if _, err := conn.Write(append(b, '\r', '\n')); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		carryOneWay(up, brw.Reader, conn)
	}()
	carryOneWay(conn, up, up)
	<-done
}

// carryOneWay copies until from ends, and then ends that direction; after an
// error nothing of the other direction can be wanted either.
func carryOneWay(to io.WriteCloser, from io.Reader, source io.Closer) {
	if shovel(to, from) == nil {
		_ = closeWrite(to)
		return
	}
	to.Close()
	source.Close()
}

// shovel copies each read at once, until from ends.
func shovel(to io.Writer, from io.Reader) error {
	large := false
	for {
		// Most tunnels are idle or carry short messages.
		buf := getBuffer(large)
		n, err := from.Read(buf.b)
		large = n == len(buf.b)
		if n > 0 {
			if _, werr := to.Write(buf.b[:n]); werr != nil {
				err = werr
			}
		}
		buf.put()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
