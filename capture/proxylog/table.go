package proxylog

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"reprise/internal/jsonscan"
)

// A key binds a path of JSON keys to a field: "request.remote_ip" is the member
// remote_ip of the object request, "tries.*" every element of an array. A dot
// in a key itself is written as "\.".
type key struct {
	path string
	bind binding
}

// errJSON is what a line that is no JSON object gives.
var errJSON = errors.New("is not a JSON object")

// A table reads JSON objects by their keys. Most lines of a log have the keys of
// the line before in the same order, so each place in an object remembers the
// key that it saw last, and what is to be done with it.
type table struct {
	root *node
	// guess finds a binding for a key of the outermost object that no path
	// names, or nil.
	guess func(name string) *binding
	// deep holds what a JSON text inside a string is unquoted into, one buffer a
	// level. Values of a record may point into it until the next line.
	deep [][]byte
}

type node struct {
	bind  *binding
	sub   map[string]*node
	each  *node // elements of an array
	last  []place
	known int // names that guess was asked for
}

// A place is what stood at an index of an object in the line before.
type place struct {
	name []byte
	node *node // nil: nothing is made of it
}

const (
	// maxPlaces bounds the places that an object remembers.
	maxPlaces = 128
	// maxGuesses bounds the names that are looked up by guess and remembered.
	maxGuesses = 512
	// maxEmbedded bounds how deep JSON in strings in JSON is followed.
	maxEmbedded = 3
)

// newTable makes a table. Of paths that hold one field, earlier ones go first.
func newTable(keys []key) *table {
	t := &table{root: &node{}}
	rank := map[field]uint8{}
	for _, k := range keys {
		k.bind.rank = rank[k.bind.field]
		rank[k.bind.field]++
		t.add(k.path, k.bind)
	}
	return t
}

func (t *table) add(path string, b binding) {
	n := t.root
	for _, name := range splitPath(path) {
		if name == "*" {
			if n.each == nil {
				n.each = &node{}
			}
			n = n.each
			continue
		}
		if n.sub == nil {
			n.sub = map[string]*node{}
		}
		if n.sub[name] == nil {
			n.sub[name] = &node{}
		}
		n = n.sub[name]
	}
	n.bind = &b
}

func splitPath(path string) []string {
	var names []string
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '\\' && i+1 < len(path):
			i++
			b.WriteByte(path[i])
		case path[i] == '.':
			names = append(names, b.String())
			b.Reset()
		default:
			b.WriteByte(path[i])
		}
	}
	return append(names, b.String())
}

// object reads one JSON object, which must be all of line, into r.
func (t *table) object(line []byte, r *record) error {
	p := jsonscan.New(line)
	if !p.Enter('{') {
		return errJSON
	}
	t.members(&p, t.root, r, 0)
	if p.Peek(); p.Bad() || p.Rest() != 0 {
		return errJSON
	}
	return nil
}

// members reads what is left of an object that p has entered.
func (t *table) members(p *jsonscan.Parser, n *node, r *record, level int) {
	for i := 0; ; i++ {
		var likely []byte
		if i < len(n.last) {
			likely = n.last[i].name
		}
		name, ok := p.KeyIs(likely)
		if !ok {
			return
		}
		var c *node
		if likely != nil && bytes.Equal(likely, name) {
			c = n.last[i].node
		} else {
			c = t.find(n, name)
			n.remember(i, name, c)
		}
		if c == nil {
			p.Skip()
			continue
		}
		t.value(p, c, r, level)
	}
}

// value reads a value by the node of its key.
func (t *table) value(p *jsonscan.Parser, n *node, r *record, level int) {
	switch c := p.Peek(); {
	case c == '{' && n.sub != nil:
		if p.Enter('{') {
			t.members(p, n, r, level)
		}
	case c == '[' && n.each != nil:
		if p.Enter('[') {
			for p.Elem() {
				t.value(p, n.each, r, level)
			}
		}
	case c == '"' && n.bind == nil && (n.sub != nil || n.each != nil):
		t.embedded(p.Value(), n, r, level)
	default:
		if v := p.Value(); n.bind != nil && !p.Bad() {
			r.putJSON(n.bind, v)
		}
	}
}

// embedded reads JSON that stands in a string.
func (t *table) embedded(v []byte, n *node, r *record, level int) {
	if level == maxEmbedded || len(v) < 4 {
		return
	}
	inner := v[1 : len(v)-1]
	if inner[0] != '{' && inner[0] != '[' && inner[0] != '\\' && inner[0] != ' ' {
		return
	}
	if bytes.IndexByte(inner, '\\') >= 0 {
		for len(t.deep) <= level {
			t.deep = append(t.deep, nil)
		}
		var s string
		if json.Unmarshal(v, &s) != nil {
			return
		}
		inner = []byte(s)
		t.deep[level] = inner
	}
	t.text(inner, n, r, level+1)
}

// text reads JSON by a node, and nothing if it is none.
func (t *table) text(b []byte, n *node, r *record, level int) {
	p := jsonscan.New(b)
	t.value(&p, n, r, level)
}

// find looks a key up.
func (t *table) find(n *node, name []byte) *node {
	if c, ok := n.sub[string(name)]; ok {
		return c
	}
	if n != t.root || t.guess == nil || n.known >= maxGuesses || len(name) > 128 {
		return nil
	}
	n.known++
	var c *node
	if b := t.guess(string(name)); b != nil {
		c = &node{bind: b}
	}
	if n.sub == nil {
		n.sub = map[string]*node{}
	}
	n.sub[string(name)] = c
	return c
}

// remember notes what stood at place i.
func (n *node) remember(i int, name []byte, c *node) {
	if i >= maxPlaces || len(name) > 128 || bytes.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) {
		return
	}
	for len(n.last) <= i {
		n.last = append(n.last, place{})
	}
	n.last[i].name = append(n.last[i].name[:0], name...)
	n.last[i].node = c
}
