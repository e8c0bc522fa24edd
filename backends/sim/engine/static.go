package engine

import "time"

// A staticBatch is the rectangle of static batching: every row is as long as
// the longest prompt and runs until the longest answer ends.
type staticBatch struct {
	rows     []*Request // ended ones keep their row
	padded   int        // length of the longest prompt
	computed int        // columns done
	blocks   int        // KV blocks reserved for the whole rectangle
}

// stepStatic runs one column of the rectangle, or its prompts if it is new.
func (e *Engine) stepStatic(now time.Duration) load {
	b := &e.static
	e.doneStatic() // all rows may have been aborted since
	if len(b.rows) == 0 {
		e.formStatic(now)
		if len(b.rows) == 0 {
			return load{}
		}
	}
	n, real := 1, 0
	if b.computed == 0 {
		n = b.padded
	}
	var l load
	for _, r := range b.rows {
		l.add(b.computed, n)
		if r.place != running {
			continue
		}
		own := r.tokens - r.computed // the whole prompt, or the one new token
		e.batch = append(e.batch, slot{r, own})
		real += own
	}
	b.computed += n
	e.stats.PaddedTokens += uint64(l.tokens - real)
	return l
}

// formStatic takes requests from the head of the queue while the rectangle
// that they span fits the cache.
func (e *Engine) formStatic(now time.Duration) {
	b := &e.static
	longest := 0
	for len(b.rows) < min(e.cfg.StaticSize, e.cfg.MaxSeqs) && e.queue.len() > 0 {
		r := e.queue.first()
		padded, answer := max(b.padded, r.PromptLen), max(longest, r.MaxTokens)
		blocks := (padded + answer + e.cfg.BlockSize - 1) / e.cfg.BlockSize * (len(b.rows) + 1)
		if len(b.rows) > 0 && blocks > e.pool.usable() {
			break
		}
		e.queue.pop()
		r.place, r.Scheduled = running, now
		b.rows = append(b.rows, r)
		b.padded, longest, b.blocks = padded, answer, blocks
	}
	b.computed = 0
}

// doneStatic gives the rectangle up once no row runs any more.
func (e *Engine) doneStatic() {
	for _, r := range e.static.rows {
		if r.place == running {
			return
		}
	}
	clear(e.static.rows)
	e.static = staticBatch{rows: e.static.rows[:0]}
}
