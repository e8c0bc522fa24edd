package proxy

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// hop reports whether a header is between two neighbours only. net/http has
// canonicalised the name. Proxy-Authenticate and Proxy-Authorization are not
// among them: this is a gateway, which has no say in them.
func hop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// listed returns the header names that Connection declares to be of this hop
// only, canonical; nil for the usual values of the field.
func listed(h http.Header) []string {
	var names []string
	for _, v := range h["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			token = strings.Trim(token, " \t")
			if token == "" || strings.EqualFold(token, "close") || strings.EqualFold(token, "keep-alive") {
				continue
			}
			names = append(names, http.CanonicalHeaderKey(token))
		}
	}
	return names
}

// upgrade returns the protocols that a client asks to switch to, or "". An
// upgrade to h2c is not passed on: it would tunnel requests past the proxy,
// and RFC 9113 has withdrawn it; the request is answered as what it is.
func upgrade(r *http.Request) string {
	if r.ProtoMajor != 1 || !hasToken(r.Header["Connection"], "upgrade") {
		return ""
	}
	protocols := strings.Join(r.Header["Upgrade"], ", ")
	if hasToken(r.Header["Upgrade"], "h2c") {
		return ""
	}
	return protocols
}

// forwardable reports whether the head can be written as HTTP/1.1 without one
// part of it being read as another. Over HTTP/1.1 net/http has refused all
// else; a method, path or authority of HTTP/2 may hold a space, which would
// end the request line early.
func forwardable(r *http.Request) bool {
	return isToken(r.Method) && visible(r.RequestURI) && visible(r.Host)
}

// isToken reports whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// hasToken reports whether token is an element of the comma-separated lists,
// whatever its case.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for e := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(e, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// visible reports whether s has no space and no control character.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// target returns the request target in origin form, byte for byte as it came:
// a client may also send the absolute form, whose authority net/http has put
// into Host.
func target(r *http.Request) string {
	uri := r.RequestURI
	if uri == "" || uri[0] == '/' || uri == "*" {
		return uri
	}
	if _, rest, ok := strings.Cut(uri, "://"); ok {
		if i := strings.IndexAny(rest, "/?"); i < 0 {
			return "/"
		} else if rest[i] == '?' {
			return "/" + rest[i:]
		} else {
			return rest[i:]
		}
	}
	return uri
}

// framing says how a request body is delimited.
type framing struct {
	length  int64 // of the body; -1: chunked
	present bool  // Content-Length is said although it is 0
}

func framingOf(r *http.Request) framing {
	_, said := r.Header["Content-Length"]
	return framing{r.ContentLength, said}
}

// appendHead appends the request line and the header of r as HTTP/1.1 to b,
// complete with the empty line.
func (p *Proxy) appendHead(b []byte, r *http.Request, f framing) []byte {
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, target(r)...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, r.Host...)
	b = append(b, '\r', '\n')
	drop := listed(r.Header)
	for name, values := range r.Header {
		if hop(name) || name == "Content-Length" || name == "Host" || slices.Contains(drop, name) {
			continue
		}
		if p.o.Forwarded && forwardedField(name) {
			continue
		}
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	switch {
	case f.length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for name := range r.Trailer {
			b = appendField(b, "Trailer", name)
		}
	case f.length > 0 || f.present:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, f.length, 10)
		b = append(b, '\r', '\n')
	}
	trailers := wantsTrailers(r.Header)
	protocols := upgrade(r)
	switch {
	case trailers && protocols != "":
		b = append(b, "Connection: TE, Upgrade\r\n"...)
	case trailers:
		b = append(b, "Connection: TE\r\n"...)
	case protocols != "":
		b = append(b, "Connection: Upgrade\r\n"...)
	}
	if trailers {
		b = append(b, "TE: trailers\r\n"...)
	}
	if protocols != "" {
		b = appendField(b, "Upgrade", protocols)
	}
	if p.o.Forwarded {
		for _, f := range forwardedFields(r) {
			b = appendField(b, f[0], f[1])
		}
	}
	return append(b, '\r', '\n')
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ':', ' ')
	b = append(b, value...)
	return append(b, '\r', '\n')
}

// wantsTrailers reports whether the client said TE: trailers, the one value of
// TE that can be passed on truthfully.
func wantsTrailers(h http.Header) bool {
	te, ok := h["Te"]
	return ok && hasToken(te, "trailers")
}

// cloneHeader is the header of r as another net/http client may send it on.
func (p *Proxy) cloneHeader(r *http.Request) http.Header {
	h := make(http.Header, len(r.Header)+2)
	drop := listed(r.Header)
	for name, values := range r.Header {
		if hop(name) || slices.Contains(drop, name) || p.o.Forwarded && forwardedField(name) {
			continue
		}
		h[name] = values
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // net/http's way of sending none
	}
	if wantsTrailers(r.Header) {
		h["Te"] = []string{"trailers"}
	}
	if protocols := upgrade(r); protocols != "" {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{protocols}
	}
	if p.o.Forwarded {
		for _, f := range forwardedFields(r) {
			h[f[0]] = []string{f[1]}
		}
	}
	return h
}

func forwardedField(name string) bool {
	return name == "X-Forwarded-For" || name == "X-Forwarded-Proto" || name == "X-Forwarded-Host"
}

// forwardedFields are the fields of --forwarded. The address is added to those
// of proxies before this one; the other two are theirs where they said them.
func forwardedFields(r *http.Request) [][2]string {
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = "unknown"
	}
	if before := strings.Join(r.Header["X-Forwarded-For"], ", "); before != "" {
		client = before + ", " + client
	}
	scheme := r.Header.Get("X-Forwarded-Proto")
	if scheme == "" {
		if scheme = "http"; r.TLS != nil {
			scheme = "https"
		}
	}
	host := r.Header.Get("X-Forwarded-Host")
	if host == "" {
		host = r.Host
	}
	return [][2]string{{"X-Forwarded-For", client}, {"X-Forwarded-Proto", scheme}, {"X-Forwarded-Host", host}}
}

// The values that stop net/http's server from adding a field of its own.
var (
	absent  []string
	chunked = []string{"chunked"}
)

// copyHead makes the head of an answer that of the answer to the client. The
// values are shared with from.
func copyHead(to, from http.Header) {
	drop := listed(from)
	for name, values := range from {
		if !hop(name) && !slices.Contains(drop, name) {
			to[name] = values
		}
	}
	if _, ok := from["Date"]; !ok {
		to["Date"] = absent
	}
	if _, ok := from["Content-Type"]; !ok {
		to["Content-Type"] = absent
	}
}
