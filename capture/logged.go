package capture

import (
	"encoding/json"
	"strconv"
	"time"

	"reprise/traceformat"
)

// A Logged is a request and its outcome as a log tells them. Identities are in
// plain text: the recorder keys them, and nothing else of them is kept.
type Logged struct {
	// Row holds what the log says. ID, Arrival, Session, Parent, Turn, Client and
	// PrefixBlocks are the recorder's to fill; Think is kept if it is set.
	// Class, Error and Extra are kept as they are: they must hold no text of a
	// prompt, key or address. A Model that does not look like a name is hashed.
	Row traceformat.Row

	Arrival int64 // ns since the epoch

	Client  string // address, key id or tenant
	Session string
	User    string // goes to extra as "user"
	// RequestID names the request: a second row with the same one, within the
	// retry window, is an attempt at it.
	RequestID string
	// PrefixHashes are the ids of the prompt's blocks as the log has them, chained
	// by the source: equal prefix, equal ids. Nil is unknown.
	PrefixHashes []string
	Attempts     int // goes to extra as "attempts" if more than 1
}

// Record accounts for one request of a log and writes its row. Rows may come in
// any order. It fills in what is its to fill in l.Row.
func (r *Recorder) Record(l *Logged) {
	row := &l.Row
	k := r.key
	row.Client, row.PrefixBlocks = "", nil
	row.Session, row.Parent, row.Turn = traceformat.Opt[int64]{}, traceformat.Opt[int64]{}, traceformat.Opt[int32]{}
	if row.Model != "" {
		row.Model = nameOf(k, row.Model)
	}
	if l.PrefixHashes != nil {
		row.PrefixBlocks = make([]uint64, len(l.PrefixHashes))
		for i, h := range l.PrefixHashes {
			row.PrefixBlocks[i] = k.id(domainLogBlock, h)
		}
	}
	row.Extra = l.extra(k, row.Extra)

	r.mu.Lock()
	defer r.mu.Unlock()
	r.acc.Seen++
	if r.closed {
		r.drop(ReasonIncomplete)
		return
	}
	r.begin(l.Arrival)
	row.Client = r.clientOf(l.Client)
	if r.repeated(l) {
		r.drop(ReasonRetry)
		return
	}
	link := r.threads.find(k, l.Arrival, row.Client, l.Session, "", nil)
	if s := r.o.Sample; s.Of > 1 {
		of := row.Client
		if !s.ByClient && link.session != nil {
			of = strconv.FormatInt(link.session.id, 10)
		}
		if of == "" {
			of = l.RequestID // what belongs to nothing is sampled one by one
		}
		if of == "" {
			of = strconv.FormatInt(l.Arrival, 10)
		}
		if !s.keeps(k, of) {
			r.drop(ReasonSampledOut)
			return
		}
	}
	row.Arrival = time.Duration(l.Arrival - r.start)
	end := turnEnd{session: link.session, client: row.Client, end: l.Arrival + int64(row.E2E.Or(row.Abort.V)), row: -1}
	if link.session != nil {
		link.place(l.Arrival)
		row.Session, row.Turn = traceformat.Some(link.session.id), link.turn
		if e := link.parent; e != nil && row.Turn.Or(1) > 0 {
			if e.row >= 0 {
				row.Parent = traceformat.Some(e.row)
			}
			if !row.Think.OK {
				row.Think = traceformat.Some(time.Duration(l.Arrival - e.end))
			}
		}
	}
	if r.append(row) {
		end.row = row.ID
	}
	if end.session != nil {
		r.threads.remember(k, end, nil, traceformat.Opt[uint64]{}, "")
	}
}

// maxClients bounds the pseudonyms that are remembered.
const maxClients = 1 << 16

// clientOf is the pseudonym of a client. A log names few of them, and often: what
// was hashed is remembered. r.mu is held.
func (r *Recorder) clientOf(client string) string {
	if client == "" {
		return ""
	}
	name, ok := r.clients[client]
	if !ok {
		name = r.key.pseudonym(domainClient, "", client)
		if r.clients == nil || len(r.clients) >= maxClients {
			r.clients = map[string]string{}
		}
		r.clients[client] = name
	}
	return name
}

// repeated reports whether l is another attempt at a request that was seen. r.mu
// is held.
func (r *Recorder) repeated(l *Logged) bool {
	q := &r.retries
	if l.RequestID == "" || q.window == 0 {
		return false
	}
	key := r.key.id(domainRequest, l.RequestID)
	if a := q.seen.get(key); a != nil && max(a.begun-l.Arrival, l.Arrival-a.begun) <= q.window {
		return true
	}
	q.seen.put(key, &attempted{key: key, begun: l.Arrival})
	return false
}

// extra adds what no column names to the JSON object of the source.
func (l *Logged) extra(k *Key, own string) string {
	if l.User == "" && l.Attempts <= 1 {
		return own
	}
	fields := map[string]any{}
	if own != "" && json.Unmarshal([]byte(own), &fields) != nil {
		return own // the row's check has a word for it
	}
	if l.User != "" {
		fields["user"] = k.pseudonym(domainUser, "", l.User)
	}
	if l.Attempts > 1 {
		fields["attempts"] = l.Attempts
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return own
	}
	return string(b)
}
