package wirehttp

import (
	"golang.org/x/net/http2/hpack"
)

const (
	// defaultTable is the size of the dynamic table until an update says
	// otherwise (RFC 9113, SETTINGS_HEADER_TABLE_SIZE).
	defaultTable = 4096
	// maxTable bounds what we keep of a table. Entries beyond it become unknown,
	// never wrong.
	maxTable = 64 << 10
	// maxString bounds one name or value.
	maxString = 64 << 10
)

// A text is a name or a value that may be unknown.
type text struct {
	s  string
	ok bool
}

// headerField is a decoded field; what refers to table entries from before the
// capture, or from a part that was lost, is unknown.
type headerField struct{ name, value text }

func (h headerField) size() int { return len(h.name.s) + len(h.value.s) + 32 }

// headerTable decodes header blocks of one direction (RFC 7541) without having
// seen all of them. Entries are counted from the newest, so that what was
// inserted since is found under its exact index and what lies behind it is
// known to be unknown. It is never reset on an error: see lose.
//
// golang.org/x/net/http2/hpack refuses a block with one index that it does not
// have, so that it serves here for Huffman codes, and in tests as the oracle.
type headerTable struct {
	entries []headerField // oldest first
	size    int
	max     int
	maxSure bool // max is what the encoder uses
}

func newHeaderTable(late bool) *headerTable { return &headerTable{max: defaultTable, maxSure: !late} }

// lose forgets all entries: blocks were missed, and with them insertions.
func (t *headerTable) lose() {
	t.entries, t.size, t.maxSure = nil, 0, false
}

// decode reads a block and calls field for each field in it. It returns false
// if the block is damaged, and the table with it.
func (t *headerTable) decode(b []byte, field func(headerField)) bool {
	ok := t.read(b, field)
	if !ok {
		t.lose()
	}
	return ok
}

func (t *headerTable) read(b []byte, field func(headerField)) bool {
	for len(b) > 0 {
		c := b[0]
		var n uint64
		var ok bool
		switch {
		case c&0x80 != 0: // indexed (6.1)
			if n, b, ok = readInt(b, 7); !ok || n == 0 {
				return false
			}
			field(t.at(n))
		case c&0xe0 == 0x20: // size update (6.3)
			if n, b, ok = readInt(b, 5); !ok || n > 1<<30 {
				return false
			}
			t.max, t.maxSure = int(n), true
			t.evict()
		default: // literal (6.2)
			bits, insert := 4, false
			if c&0xc0 == 0x40 {
				bits, insert = 6, true
			}
			if n, b, ok = readInt(b, bits); !ok {
				return false
			}
			var h headerField
			if n > 0 {
				h.name = t.at(n).name
			} else if h.name, b, ok = readString(b); !ok {
				return false
			}
			if h.value, b, ok = readString(b); !ok {
				return false
			}
			if insert {
				t.insert(h)
			}
			field(h)
		}
	}
	return true
}

// at is the entry of an index.
func (t *headerTable) at(n uint64) headerField {
	if n < uint64(len(staticTable)) {
		e := staticTable[n]
		return headerField{text{e[0], true}, text{e[1], true}}
	}
	n -= uint64(len(staticTable))
	if n >= uint64(len(t.entries)) {
		return headerField{}
	}
	return t.entries[uint64(len(t.entries))-1-n]
}

func (t *headerTable) insert(h headerField) {
	if h.size() > t.max {
		if !t.maxSure {
			// Whether it went in depends on a size that was agreed on before.
			t.lose()
			return
		}
		t.entries, t.size = nil, 0 // RFC 7541, 4.4
		return
	}
	t.entries = append(t.entries, h)
	t.size += h.size()
	t.evict()
}

func (t *headerTable) evict() {
	i := 0
	for ; i < len(t.entries) && t.size > min(t.max, maxTable); i++ {
		t.size -= t.entries[i].size()
	}
	if i > 0 {
		t.entries = append(t.entries[:0], t.entries[i:]...)
		clear(t.entries[len(t.entries):cap(t.entries)])
	}
}

// readInt reads an integer with a prefix of n bits (5.1).
func readInt(b []byte, n int) (v uint64, rest []byte, ok bool) {
	mask := uint64(1)<<n - 1
	v = uint64(b[0]) & mask
	b = b[1:]
	if v < mask {
		return v, b, true
	}
	for shift := 0; shift < 35; shift += 7 {
		if len(b) == 0 {
			return 0, nil, false
		}
		c := b[0]
		b = b[1:]
		v += uint64(c&0x7f) << shift
		if c&0x80 == 0 {
			return v, b, true
		}
	}
	return 0, nil, false
}

// readString reads a string (5.2).
func readString(b []byte) (s text, rest []byte, ok bool) {
	if len(b) == 0 {
		return s, nil, false
	}
	huffman := b[0]&0x80 != 0
	n, b, ok := readInt(b, 7)
	if !ok || n > uint64(len(b)) || n > maxString {
		return s, nil, false
	}
	raw := b[:n]
	b = b[n:]
	if !huffman {
		return text{string(raw), true}, b, true
	}
	v, err := hpack.HuffmanDecodeToString(raw)
	if err != nil || len(v) > maxString {
		return s, nil, false
	}
	return text{v, true}, b, true
}

// staticTable is appendix A of RFC 7541; index 0 is not used.
var staticTable = [62][2]string{
	{}, {":authority", ""}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"},
	{":scheme", "http"}, {":scheme", "https"}, {":status", "200"}, {":status", "204"}, {":status", "206"},
	{":status", "304"}, {":status", "400"}, {":status", "404"}, {":status", "500"}, {"accept-charset", ""},
	{"accept-encoding", "gzip, deflate"}, {"accept-language", ""}, {"accept-ranges", ""}, {"accept", ""},
	{"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""}, {"authorization", ""}, {"cache-control", ""},
	{"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""}, {"content-length", ""},
	{"content-location", ""}, {"content-range", ""}, {"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""},
	{"expect", ""}, {"expires", ""}, {"from", ""}, {"host", ""}, {"if-match", ""}, {"if-modified-since", ""},
	{"if-none-match", ""}, {"if-range", ""}, {"if-unmodified-since", ""}, {"last-modified", ""}, {"link", ""},
	{"location", ""}, {"max-forwards", ""}, {"proxy-authenticate", ""}, {"proxy-authorization", ""}, {"range", ""},
	{"referer", ""}, {"refresh", ""}, {"retry-after", ""}, {"server", ""}, {"set-cookie", ""},
	{"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""}, {"via", ""},
	{"www-authenticate", ""},
}
