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
	turns  map[int64][]*turn // by the id of the request that they continue
	is     map[int64]bool    // ids of turns; other requests are sent by the schedule
	sent   map[int64]bool    // ids of session rows that the plan sends
	last   map[int64]last    // by session
	n      int
	silent notes // turns whose pause is unknown
}

// last is what the next turn of a session needs of the one before it.
type last struct {
	id     int64
	answer traceformat.Opt[time.Duration] // when the source's answer ended, trace time
}

func newConversations() *conversations {
	return &conversations{turns: map[int64][]*turn{}, is: map[int64]bool{}, sent: map[int64]bool{}, last: map[int64]last{}}
}

// add looks at one planned row, in trace order.
func (c *conversations) add(it *item) error {
	row := it.row
	session, ok := row.Session.Get()
	if !ok {
		return nil
	}
	before, hasBefore := c.last[session]
	now := last{id: row.ID}
	if e2e, ok := row.E2E.Get(); ok {
		// In a run E2E counts from the send, in a capture from the arrival.
		sent := row.Arrival
		if row.Scheduled.OK {
			sent = row.Sent.Or(sent)
		}
		now.answer = traceformat.Some(sent + e2e)
	}
	c.last[session] = now
	c.sent[row.ID] = true

	parent, follows := row.Parent.Get()
	if !follows && hasBefore {
		parent, follows = before.id, true
	}
	if !follows || !c.sent[parent] || parent == row.ID {
		return nil
	}
	t := &turn{row: *row.Clone(), prompt: it.prompt, output: it.output, abort: it.abort, pause: row.Think}
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
	c.turns[parent] = append(c.turns[parent], t)
	c.is[row.ID] = true
	return nil
}

// follow counts the turns that wait for request id, directly or not.
func (c *conversations) follow(id int64) int64 {
	n := int64(len(c.turns[id]))
	for _, t := range c.turns[id] {
		n += c.follow(t.row.ID)
	}
	return n
}

// planned frees what only planning needed.
func (c *conversations) planned() { c.sent, c.last = nil, nil }

// due is when t is sent if the answer that it waits for ended at answered.
// Both times are of the run.
func (p *Plan) due(t *turn, lap int32, answered time.Duration) time.Duration {
	after := answered
	if p.Options.Sessions != SessionsRecorded {
		after += p.scale(t.pause.V)
	}
	if p.Options.Sessions == SessionsBoth {
		return max(after, p.scale(t.row.Arrival-p.Base+time.Duration(lap)*p.Lap))
	}
	return after
}

// A user plays one session of a closed loop and leaves at its end.
type user struct{ open atomic.Int64 } // requests sent or to be sent
