package convert

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"

	"reprise/traceformat"
)

// hashedSession marks session ids that were made of text, so that they cannot
// meet one that is a number in the source.
const hashedSession = int64(1) << 62

// sessionID makes a session id of a source's name for it. Canonical decimal
// numbers below 2^62 stay themselves; all else is the start of its SHA-256 with
// bit 62 set, and the name has to be kept in Extra.
func sessionID(name string) (id int64, hashed bool) {
	if v, err := strconv.ParseInt(name, 10, 64); err == nil && v >= 0 && v < hashedSession && strconv.FormatInt(v, 10) == name {
		return v, false
	}
	sum := sha256.Sum256([]byte(name))
	return int64(binary.LittleEndian.Uint64(sum[:8])&uint64(hashedSession-1)) | hashedSession, true
}

// turns remembers the last row of each conversation, for as many conversations
// as were active last: between maxRemembered and twice that.
type turns[V any] struct {
	young, old map[int64]V
}

const maxRemembered = 1 << 19

func (t *turns[V]) get(key int64) (V, bool) {
	if v, ok := t.young[key]; ok {
		return v, true
	}
	v, ok := t.old[key]
	return v, ok
}

func (t *turns[V]) set(key int64, v V) {
	if len(t.young) >= maxRemembered {
		t.old, t.young = t.young, nil
	}
	if t.young == nil {
		t.young = make(map[int64]V)
	}
	t.young[key] = v
}

// turn is where a conversation stands.
type turn struct {
	row     int64 // id of its last row
	n       int32 // position of it
	arrival int64
}

// follow makes row the next turn of a session.
func (t *sessions) follow(row *traceformat.Row, session int64) {
	row.Session = traceformat.Some(session)
	last, ok := t.get(session)
	if ok {
		last.n++
		row.Parent = traceformat.Some(last.row)
	}
	row.Turn = traceformat.Some(last.n)
	last.row, last.arrival = row.ID, int64(row.Arrival)
	t.set(session, last)
}

// sessions are the conversations of a source that names them row by row.
type sessions struct{ turns[turn] }
