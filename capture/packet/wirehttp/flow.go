package wirehttp

import (
	"bytes"

	"reprise/capture"
	"reprise/capture/packet/reassembly"
)

// Roles index what there is once per direction.
const (
	fromClient = 0
	fromServer = 1
)

// maxUndecided is how many bytes of a connection are looked at for frames of
// HTTP/2 before only the beginnings of segments are.
const maxUndecided = 1 << 20

// A Flow is one connection: it finds out what is spoken and hands the bytes to
// the parser of that.
type Flow struct {
	env    *Env
	ends   [2]*reassembly.Endpoint
	name   string
	client reassembly.Dir
	late   bool

	h1   *h1
	h2   *h2
	dead bool // nothing to read here
	seen int64
	// lost says that bytes of a direction were lost, lastly at lostAt, before
	// the protocol was known.
	lost   [2]bool
	lostAt [2]int64

	fin  [2]int64 // by role: when that side ended its stream, 0: not yet
	held int      // bytes charged to the budget
}

var _ reassembly.Handler = (*Flow)(nil)

func (f *Flow) role(d reassembly.Dir) int {
	if d == f.client {
		return fromClient
	}
	return fromServer
}

// charge takes n bytes of the memory budget, or gives them back.
func (f *Flow) charge(n int) {
	f.held += n
	f.env.Budget.Add(n)
}

// Data implements [reassembly.Handler].
func (f *Flow) Data(d reassembly.Dir, at reassembly.Mark, p []byte) {
	switch {
	case f.h1 != nil:
		f.h1.data(f.role(d), at, p)
	case f.dead:
	case f.h2 != nil && f.h2.sure:
		f.h2.data(f.role(d), at, p)
	default:
		f.detect(d, at, p)
	}
}

// detect tells the protocol from a segment. Where the connection was joined
// late that may take many segments.
func (f *Flow) detect(d reassembly.Dir, at reassembly.Mark, p []byte) {
	fresh := !f.late && at.Off == 0
	switch {
	case bytes.HasPrefix(p, preface):
		f.client = d
		f.env.HTTP2++
		f.drop2()
		f.h2 = newH2(f, false)
		f.h2.data(fromClient, at, p)
	case looksLikeRequest(p) || fresh && f.role(d) == fromClient && startsToken(p):
		f.client = d
		f.start1(!fresh)
		f.h1.data(fromClient, at, p)
	case looksLikeResponse(p):
		f.client = d.Other()
		f.start1(!fresh)
		f.h1.data(fromServer, at, p)
	case len(p) > 2 && p[0] >= 0x14 && p[0] <= 0x17 && p[1] == 3 && p[2] <= 4:
		f.env.TLS++
		f.die()
	case fresh && f.role(d) == fromServer && len(p) >= frameHead && p[3] == frameSettings && plausible(p, nil):
		// A server may send its settings before the client says anything.
		f.env.HTTP2++
		f.h2 = newH2(f, false)
		f.h2.data(fromServer, at, p)
	case fresh:
		f.env.NotHTTP++
		f.die()
	default:
		f.env.LostBytes += int64(len(p))
		f.seen += int64(len(p))
		if f.seen > maxUndecided && !(len(p) >= 9 && plausible(p, nil)) {
			f.drop2()
			return
		}
		if f.h2 == nil {
			f.h2 = newH2(f, true)
		}
		f.h2.data(f.role(d), at, p)
		if f.h2 != nil && f.h2.sure {
			f.env.HTTP2++
			f.env.LateHTTP2++
		}
	}
}

// start1 begins with HTTP/1.
func (f *Flow) start1(late bool) {
	f.env.HTTP1++
	f.drop2()
	f.h1 = newH1(f, late)
	if f.lost[f.client] {
		f.h1.push(asked{lost: true, off: f.lostAt[f.client]}, 0)
	}
}

// drop2 gives up a search for HTTP/2 frames.
func (f *Flow) drop2() {
	if f.h2 != nil {
		f.h2.release()
		f.h2 = nil
	}
}

// die stops reading the connection.
func (f *Flow) die() {
	f.drop2()
	f.dead = true
}

// Gap implements [reassembly.Handler].
func (f *Flow) Gap(d reassembly.Dir, at reassembly.Mark, n int64) {
	switch {
	case f.h1 != nil:
		f.h1.gap(f.role(d), at, n)
	case f.dead:
	case f.h2 != nil:
		f.h2.gap(f.role(d), at, n)
	default:
		f.late = true // the beginning was lost
		f.lost[d], f.lostAt[d] = true, at.Off
	}
}

// Fin implements [reassembly.Handler].
func (f *Flow) Fin(d reassembly.Dir, t int64) {
	role := f.role(d)
	if f.fin[role] == 0 {
		f.fin[role] = t
	}
	if f.h1 != nil && role == fromServer {
		f.h1.serverFin(t)
	}
}

// Close implements [reassembly.Handler].
func (f *Flow) Close(t int64, why reassembly.Closing, by reassembly.Dir) {
	end := ending{t: t}
	switch why {
	case reassembly.Reset, reassembly.Finished:
		// Who ended the connection first is who did not want the rest.
		role := f.role(by)
		if c, s := f.fin[fromClient], f.fin[fromServer]; c != 0 && (s == 0 || c <= s) {
			role, end.t = fromClient, c
		} else if s != 0 {
			role, end.t = fromServer, s
		}
		end.how = capture.ServerReset
		if role == fromClient {
			end.how = capture.ClientAbort
		}
	case reassembly.Idle:
		end.how = capture.Timeout
	case reassembly.Evicted:
		end.how = capture.Evicted
	default:
		end.how = capture.Truncated
	}
	switch {
	case f.h1 != nil:
		f.h1.close(end)
	case f.h2 != nil:
		f.h2.close(end)
	case !f.dead && f.seen > 0:
		f.env.NotHTTP++
	}
	f.env.Budget.Add(-f.held)
	f.held = 0
}

// ending is how exchanges end that are open when their connection does.
type ending struct {
	t   int64
	how capture.Ending
}

// methods are those that a request is recognised by in mid-stream.
var methods = []string{"POST ", "GET ", "PUT ", "HEAD ", "DELETE ", "OPTIONS ", "PATCH ", "CONNECT ", "TRACE "}

// looksLikeRequest reports whether p begins with a request line, at least as
// far as p goes.
func looksLikeRequest(p []byte) bool {
	if len(p) < 5 || p[0] < 'C' || p[0] > 'T' {
		return false
	}
	for _, m := range methods {
		if !bytes.HasPrefix(p, []byte(m)) {
			continue
		}
		rest := p[len(m):]
		if len(rest) == 0 || rest[0] != '/' && rest[0] != '*' && rest[0] != 'h' && m != "CONNECT " {
			return false
		}
		line, _, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			// A target as long as a segment is possible, and has no spaces.
			target, version, spaced := bytes.Cut(line, []byte(" "))
			return printable(target) && (!spaced || bytes.HasPrefix([]byte("HTTP/1.1\r"), version) || bytes.HasPrefix([]byte("HTTP/1.0\r"), version))
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		target, version, _ := bytes.Cut(line, []byte(" "))
		return printable(target) && isVersion(version)
	}
	return false
}

func isVersion(v []byte) bool {
	return len(v) == 8 && string(v[:7]) == "HTTP/1." && (v[7] == '0' || v[7] == '1')
}

// looksLikeResponse reports whether p begins with a status line.
func looksLikeResponse(p []byte) bool {
	return len(p) >= 13 && isVersion(p[:8]) && p[8] == ' ' && p[9] >= '1' && p[9] <= '5' &&
		isDigit(p[10]) && isDigit(p[11]) && (p[12] == ' ' || p[12] == '\r')
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func printable(p []byte) bool {
	for _, c := range p {
		if c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// startsToken reports whether p can begin a request line of a method that is
// not in the list above, or one that is cut short.
func startsToken(p []byte) bool {
	for i, c := range p {
		if c == ' ' {
			return i > 0
		}
		if i >= 24 || c < 'A' || c > 'Z' {
			return false
		}
	}
	return true
}

// takeOver goes on with HTTP/2 from p, the next bytes of a side. x is the
// exchange of the request that asked for it, if one did: it becomes stream 1.
func (f *Flow) takeOver(role int, at reassembly.Mark, x Exchange, p []byte) {
	f.h1.release()
	f.h1 = nil
	f.env.HTTP2++
	f.h2 = newH2(f, false)
	if x != nil {
		s := f.h2.begin(1, x)
		s.headed, s.asked = true, true
		f.h2.newest = 1
	}
	if len(p) > 0 {
		f.h2.data(role, at, p)
	}
}
