package tokenizer

import "unicode/utf8"

// A matcher finds added tokens in text: the leftmost one, and the longest of
// those that begin there.
type matcher struct {
	next   map[uint64]uint32 // node <<8 | byte: the trie, its root 0
	tokens map[uint32]addedToken
	first  [256]bool // bytes that a token begins with
	nodes  uint32
}

// addedToken is what a match means. The strips widen it over white space.
type addedToken struct {
	id             uint32
	lstrip, rstrip bool
}

func (m *matcher) add(content string, a addedToken) {
	if m.next == nil {
		m.next, m.tokens = map[uint64]uint32{}, map[uint32]addedToken{}
	}
	m.first[content[0]] = true
	node := uint32(0)
	for i := range len(content) {
		key := uint64(node)<<8 | uint64(content[i])
		child, ok := m.next[key]
		if !ok {
			m.nodes++
			child = m.nodes
			m.next[key] = child
		}
		node = child
	}
	m.tokens[node] = a
}

// find returns the first match in s at or after i. ok is false if there is
// none.
func (m *matcher) find(s string, i int) (a addedToken, start, stop int, ok bool) {
	for ; i < len(s); i++ {
		if !m.first[s[i]] {
			continue
		}
		node := uint32(0)
		for j := i; j < len(s); j++ {
			child, more := m.next[uint64(node)<<8|uint64(s[j])]
			if !more {
				break
			}
			node = child
			if t, is := m.tokens[node]; is {
				a, start, stop, ok = t, i, j+1, true
			}
		}
		if ok {
			return a, start, stop, true
		}
	}
	return addedToken{}, 0, 0, false
}

// cut appends to dst the id of each match in s, and between them what encode
// appends for each non-empty piece.
func (m *matcher) cut(dst []uint32, s string, encode func(dst []uint32, piece string) []uint32) []uint32 {
	done := 0 // s is encoded up to here
	for from := 0; ; {
		a, start, stop, ok := m.find(s, from)
		if !ok {
			break
		}
		// The search goes on after the match itself, not after the space it
		// strips, so a token that begins with that space is found there: the
		// reference gives both.
		from = stop
		if a.lstrip {
			start = spaceBefore(s, start, done)
		}
		if a.rstrip {
			stop, _, _ = blanks(s, stop)
		}
		if done < start {
			dst = encode(dst, s[done:start])
		}
		dst = append(dst, a.id)
		done = stop
	}
	if done < len(s) {
		dst = encode(dst, s[done:])
	}
	return dst
}

// spaceBefore returns where the white space that ends at i begins, in what
// follows from.
func spaceBefore(s string, i, from int) int {
	for i > from {
		_, n := utf8.DecodeLastRuneInString(s[:i])
		if c, _ := at(s, i-n); !c.blank() {
			break
		}
		i -= n
	}
	return i
}
