package replay

import (
	"fmt"
	"sync/atomic"
	"time"

	"reprise/traceformat"
)

// A SessionPolicy says what the turns of a conversation wait for.
type SessionPolicy string

const (
	// SessionsRecorded sends every turn at its recorded time, answered or not.
	SessionsRecorded SessionPolicy = "recorded"
	// SessionsThink sends a turn when the one that it continues was answered
	// and the recorded pause is over.
	SessionsThink SessionPolicy = "think"
	// SessionsBoth sends it at the later of the two.
	SessionsBoth SessionPolicy = "both"
)

// A turn is a request whose time depends on the answer to another.
type turn struct {
	row            traceformat.Row
	prompt, output int
	abort          abort
	pause          traceformat.Opt[time.Duration] // between that answer and this request, trace time
}

// maxTurns bounds the turns that are held in memory for a policy that waits.
const maxTurns = 2 << 20

// conversations is what a plan keeps of the sessions of a trace where turns
// wait for answers: which request each turn continues.
type conversations struct {
	turns  map[requestKey][]*turn // by the request that they continue
	is     map[requestKey]bool    // the turns; other requests are sent by the schedule
	sent   map[requestKey]int64   // session rows that the plan sends, and their sessions
	last   map[requestKey]last    // by session and lap
	n      int
	silent notes // turns whose pause is unknown
}

// A requestKey identifies a row of the trace that is played, or a session of
// one of its laps.
type requestKey struct {
	id  int64
	lap int32
}

// last is what the next turn of a session needs of the one before it.
type last struct {
	id     int64
	answer traceformat.Opt[time.Duration] // when the source's answer ended, trace time
}

func newConversations() *conversations {
	return &conversations{turns: map[requestKey][]*turn{}, is: map[requestKey]bool{}, sent: map[requestKey]int64{}, last: map[requestKey]last{}}
}

// add looks at one planned row, in trace order.
func (c *conversations) add(it *item) error {
	row := it.row
	session, ok := row.Session.Get()
	if !ok {
		return nil
	}
	before, hasBefore := c.last[requestKey{session, row.Lap}]
	now := last{id: row.ID}
	if e2e, ok := row.E2E.Get(); ok {
		// In a run E2E counts from the send, in a capture from the arrival.
		sent := row.Arrival
		if row.Scheduled.OK {
			sent = row.Sent.Or(sent)
		}
		now.answer = traceformat.Some(sent + e2e)
	}
	c.last[requestKey{session, row.Lap}] = now
	c.sent[requestKey{row.ID, row.Lap}] = session

	parent, follows := row.Parent.Get()
	if !follows && hasBefore {
		parent, follows = before.id, true
	}
	key := requestKey{parent, row.Lap}
	// A parent in another session is no turn of this conversation, and may be
	// another shard's.
	if of, ok := c.sent[key]; !follows || !ok || of != session || parent == row.ID {
		return nil
	}
	t := &turn{row: traceformat.Row{Request: row.Clone().Request}, prompt: it.prompt, output: it.output, abort: it.abort, pause: row.Think}
	if !t.pause.OK {
		t.pause = row.Delay
	}
	if !t.pause.OK && hasBefore && before.id == parent && before.answer.OK {
		t.pause = traceformat.Some(max(0, row.Arrival-before.answer.V))
	}
	if !t.pause.OK {
		c.silent.add(it, fmt.Sprintf("continues request %d", parent))
	}
	if c.n++; c.n > maxTurns {
		return fmt.Errorf("more than %d turns wait for answers, which is more than is held in memory: play a part (--duration) or --sessions recorded", maxTurns)
	}
	c.turns[key] = append(c.turns[key], t)
	c.is[requestKey{row.ID, row.Lap}] = true
	return nil
}

// follow counts the turns that wait for a request, directly or not.
func (c *conversations) follow(key requestKey) int64 {
	n := int64(len(c.turns[key]))
	for _, t := range c.turns[key] {
		n += c.follow(requestKey{t.row.ID, t.row.Lap})
	}
	return n
}

// planned frees what only planning needed.
func (c *conversations) planned() { c.sent, c.last = nil, nil }

// due is when t is sent if the answer that it waits for ended at answered, in a
// session that is shift later than recorded. All three are of the run.
func (p *Plan) due(t *turn, shift, answered time.Duration) time.Duration {
	after := answered
	if p.Options.Sessions != SessionsRecorded {
		after += p.scale(t.pause.V)
	}
	if p.Options.Sessions == SessionsBoth {
		return max(after, p.scale(t.row.Arrival-p.Base)+shift)
	}
	return after
}

// A user plays one session of a closed loop and leaves at its end.
type user struct{ open atomic.Int64 } // requests sent or to be sent
