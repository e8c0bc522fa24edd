package capture

import (
	"encoding/binary"
	"strconv"

	"reprise/traceformat"
)

// threads finds out which request continues which. It remembers a bounded
// number of sessions and of ends of prompts, the oldest of which are forgotten
// first. The Recorder's mutex guards it.
type threads struct {
	sessions ring[int64, *session]  // by session id
	ends     ring[uint64, *turnEnd] // by what identifies a prompt, or a prompt with its answer
	blocks   ring[uint64, *turnEnd] // prompts of one text, by their last whole block
	answers  ring[uint64, *turnEnd] // by the id of a response
}

// Bounds of what is remembered, about 25 MB in all.
const (
	maxSessions = 1 << 16
	maxEnds     = 1 << 16
)

func (h *threads) init() {
	h.sessions.most, h.ends.most, h.blocks.most, h.answers.most = maxSessions, maxEnds, maxEnds, maxEnds
}

// A session is a conversation, explicit or found by its prefixes.
type session struct {
	id      int64
	turns   int32
	arrival int64 // the latest of a request in it
	last    *turnEnd
}

// A turnEnd is a request that has been answered: something may continue it.
type turnEnd struct {
	session *session
	client  string
	end     int64 // ns since the epoch
	row     int64 // id, or -1 if it was not recorded
	blocks  int   // whole blocks of a prompt of one text
	part    int   // bytes after them
	digest  uint64
	known   bool     // its answer was read
	bare    bool     // it is found by its prompt alone
	older   *turnEnd // under the same key; at most maxOlder of them
	depth   int
}

// maxOlder is how many requests with the same prompt are told apart.
const maxOlder = 8

// A link is where a request belongs.
type link struct {
	session *session
	turn    traceformat.Opt[int32]
	parent  *turnEnd
	named   bool // the client named the session
}

// find says where a request that arrived at t belongs. Named is the session that
// the client named, previous the response that it continues; both may be empty.
func (h *threads) find(k *Key, t int64, client, named, previous string, p *prompt) (l link) {
	if named != "" {
		l.named = true
		id := k.session(named)
		if l.session = h.sessions.get(id); l.session == nil {
			l.session = &session{id: id}
			h.sessions.put(id, l.session)
		}
	}
	fits := func(e *turnEnd) bool {
		return e.end <= t && e.client == client && (l.session == nil || e.session == l.session)
	}
	if previous != "" {
		if e := h.answers.get(k.id(domainRequest, previous)); e != nil && fits(e) {
			l.parent = e
		}
	}
	if l.parent == nil && p != nil {
		l.parent = h.continued(k, p, fits)
	}
	switch {
	case l.session == nil && l.parent != nil:
		l.session = l.parent.session
	case l.session != nil && l.parent == nil && l.session.last != nil && l.session.last.end <= t:
		l.parent = l.session.last
	}
	return l
}

// root starts a session of its own for a request that continues none.
func root(k *Key, t int64, p *prompt, n int64) *session {
	b := binary.BigEndian.AppendUint64(nil, uint64(t))
	b = binary.BigEndian.AppendUint64(b, p.digest)
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	return &session{id: int64(k.id(domainRoot, string(b)) >> 1)}
}

// place takes the next turn of the session. Where a request overtook another of
// its session, nothing says which comes first: its turn is unknown.
func (l *link) place(t int64) {
	s := l.session
	if s.turns == 0 || t > s.arrival {
		l.turn = traceformat.Some(s.turns)
		s.turns++
		s.arrival = t
	}
}

// continued finds the request of the same client whose prompt p extends. With the
// answer in it that the request got, there is no doubt. Clients shorten answers,
// so that the prompt alone will do as well, unless several have the same.
func (h *threads) continued(k *Key, p *prompt, fits func(*turnEnd) bool) *turnEnd {
	if p.bounds == nil {
		return h.extended(k, p, fits)
	}
	for i := len(p.bounds) - 2; i >= 0; i-- {
		latest := h.ends.get(p.bounds[i])
		for e := latest; e != nil; e = e.older {
			if fits(e) && !(e.bare && e.known && latest.older != nil) {
				return e
			}
		}
	}
	return nil
}

// maxTries bounds how often a prompt is read again to look for an earlier one in
// it.
const maxTries = 4

// extended is continued for prompts of one text.
func (h *threads) extended(k *Key, p *prompt, fits func(*turnEnd) bool) *turnEnd {
	if p.window == nil || len(p.blocks) == 0 {
		return nil
	}
	size := (p.bytes - int64(p.part)) / int64(len(p.blocks))
	tries := 0
	for i := len(p.blocks) - 1; i >= 0 && tries < maxTries; i-- {
		e := h.blocks.get(p.blocks[i])
		if e == nil || e.blocks != i+1 {
			continue
		}
		tries++
		from := int64(i+1) * size
		rest := p.window(from, int(min(size, p.bytes-from)))
		prev := binary.BigEndian.AppendUint64(nil, p.blocks[i])
		for ; e != nil; e = e.older {
			shorter := from+int64(e.part) < p.bytes
			if fits(e) && shorter && e.part <= len(rest) && k.boundary(prev, rest[:e.part]) == e.digest {
				return e
			}
		}
	}
	return nil
}

// remember makes a finished request known to those that may continue it.
// Answered identifies the prompt with its answer, and reply is the id of the
// response; both may be unknown.
func (h *threads) remember(k *Key, e turnEnd, p *prompt, answered traceformat.Opt[uint64], reply string) {
	own := e
	if s := own.session; s.last == nil || s.last.end <= own.end {
		s.last = &own
	}
	if reply != "" {
		h.answers.put(k.id(domainRequest, reply), &own)
	}
	switch {
	case p == nil || p.blocks == nil:
		return
	case p.bounds == nil:
		if n := len(p.blocks); n > 0 {
			e.blocks, e.part, e.digest = n, p.part, p.digest
			add(&h.blocks, p.blocks[n-1], e)
		}
		return
	}
	if answered.OK {
		add(&h.ends, answered.V, e)
	}
	e.bare = true
	add(&h.ends, p.digest, e)
}

// add puts e in front of what is under key.
func add(r *ring[uint64, *turnEnd], key uint64, e turnEnd) {
	if old := r.get(key); old != nil {
		e.older, e.depth = old, old.depth+1
		if e.depth >= maxOlder {
			e.older, e.depth = nil, 0
		}
	}
	r.put(key, &e)
}

// A ring is a map that forgets its oldest key when it holds most of them.
type ring[K comparable, V any] struct {
	most int
	m    map[K]V
	keys []K // in the order in which they came; a circle once it is full
	next int
}

func (r *ring[K, V]) get(k K) (v V) { return r.m[k] }

func (r *ring[K, V]) put(k K, v V) {
	if r.m == nil {
		r.m = map[K]V{}
	}
	if _, ok := r.m[k]; ok {
		r.m[k] = v
		return
	}
	r.m[k] = v
	if len(r.keys) < r.most {
		r.keys = append(r.keys, k)
		return
	}
	delete(r.m, r.keys[r.next])
	r.keys[r.next] = k
	r.next = (r.next + 1) % r.most
}

// admit decides under the lock whether a request that has been read is to be
// recorded, and where it belongs.
func (x *Exchange) admit() {
	r, q := x.r, &x.ask
	named := q.session
	if named == "" {
		named = q.ask.session
	}
	previous := q.ask.previous
	q.session, q.ask.session, q.ask.previous = "", "", ""
	if s := r.o.Sample; s.ByClient && !s.keeps(r.key, q.client) {
		x.discard(ReasonSampledOut)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if reason := r.attempt(x); reason != "" {
		x.discardLocked(reason)
		return
	}
	l := r.threads.find(r.key, x.begun, q.client, named, previous, q.prompt)
	if l.session == nil && q.prompt != nil && (q.prompt.bounds != nil || q.prompt.blocks != nil) && q.endpoint != traceformat.EndpointEmbeddings {
		r.roots++
		l.session = root(r.key, x.begun, q.prompt, r.roots)
	}
	if s := r.o.Sample; !s.ByClient && s.Of > 1 {
		of := q.client // what belongs to no session goes with its client
		if l.session != nil {
			of = strconv.FormatInt(l.session.id, 10)
		}
		if !s.keeps(r.key, of) {
			x.sampledOut = true
			if l.named || l.session == nil {
				// Nothing needs to be known of it to leave out what follows.
				x.discardLocked(ReasonSampledOut)
				return
			}
		}
	}
	if l.session != nil {
		l.place(x.begun)
	}
	x.link = l
}
