package capture

import "reprise/traceformat"

// A Logged is a request and its outcome as a log tells them. Identities are in
// plain text: the recorder keys them, and nothing else of them is kept.
type Logged struct {
	// Row holds what the log says. ID, Arrival, Session, Parent, Turn, Client and
	// PrefixBlocks are the recorder's to fill; Think is kept if it is set.
	// Model, Class, Error and Extra are kept as they are: they must hold no text
	// of a prompt, key or address.
	Row traceformat.Row

	Arrival int64 // ns since the epoch

	Client    string // address, key id or tenant
	Session   string
	User      string // goes to extra as "user"
	RequestID string // a second row with the same one is an attempt at the same request
	// PrefixHashes are the ids of the prompt's blocks as the log has them, chained
	// by the source: equal prefix, equal ids. Nil is unknown.
	PrefixHashes []string
	Attempts     int // goes to extra as "attempts" if more than 1
}

// Record accounts for one request of a log and writes its row.
func (r *Recorder) Record(l *Logged) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acc.Seen++
	r.begin(l.Arrival)
	row := l.Row
	row.Arrival = 0
	r.append(&row)
}
