package engine

import "time"

// Coast plays at once a stretch of passes in which nothing happens but that
// every running request makes one more token: none ends, enters, is preempted
// or waits for a chunk of its prompt. It leaves the engine exactly as Step and
// Done in turn would, and returns when the last of the passes ended and how many
// there were; 0 says that the next pass is none of this kind, or that none may
// start, as now is not before until.
//
// No pass starts at until or later, so that whoever has something to submit or
// to abort then can. Where ends is not nil, the end of each pass is appended to
// it. No event is yielded: Output and Last of the requests say what there was.
//
// Requests whose prompt is given as tokens are never coasted, as each token of
// their answers counts.
func (e *Engine) Coast(now, until time.Duration, ends *[]time.Duration) (time.Duration, int) {
	if e.busy {
		panic("engine: Coast before Done")
	}
	if e.pending.len() > 0 {
		until = min(until, e.pending.first().Queued)
	}
	n := len(e.running)
	if n == 0 || now >= until || n > e.cfg.MaxBatchedTokens || e.cfg.Batching == Static {
		return now, 0
	}
	passes := int(^uint(0) >> 1)
	ctx := int64(0)
	for _, r := range e.running {
		left := r.MaxTokens - r.Output - 1
		if r.StopAfter > 0 {
			left = min(left, max(r.StopAfter, r.MinTokens)-r.Output-1)
		}
		if r.Watch > r.Output {
			left = min(left, r.Watch-r.Output-1)
		}
		if left <= 0 || r.Output == 0 || r.own == 0 || len(r.StopIDs) > 0 || r.tokens-r.computed != 1 {
			return now, 0
		}
		passes = min(passes, left)
		ctx += int64(r.tokens)
	}
	if !e.stuck() {
		return now, 0
	}
	done, over := 0, false
	for done < passes && now < until && !over {
		// A round is as many passes as a block has tokens, at the most: in each,
		// the requests of one bucket need a block.
		round := min(passes-done, e.cfg.BlockSize)
		e.bucket(round)
		k := 0
		for ; k < round && now < until; k++ {
			takes, fills := e.takes[e.takeAt[k]:e.takeAt[k+1]], e.fills[e.fillAt[k]:e.fillAt[k+1]]
			if over = len(takes) > e.pool.free || e.queue.len() > 0 && e.shows(fills); over {
				break
			}
			for _, i := range takes {
				r := e.running[i]
				r.blocks = append(r.blocks, e.pool.take())
				r.room += e.cfg.BlockSize
			}
			for _, i := range fills {
				r := e.running[i]
				e.index(r)
				r.indexed++
			}
			now += e.cfg.Cost.of(load{seqs: n, tokens: n, ctx: ctx})
			ctx += int64(n)
			if ends != nil {
				*ends = append(*ends, now)
			}
		}
		for _, r := range e.running {
			r.computed += k
			r.tokens += k
			r.Output += k
		}
		done += k
	}
	if done == 0 {
		return now, 0
	}
	for _, r := range e.running {
		r.Last = now
	}
	e.stats.Steps += uint64(done)
	e.stats.ComputedTokens += uint64(done) * uint64(n)
	return now, done
}

// shows says that one of these running requests fills a block that others can
// find, the head of the queue among them.
func (e *Engine) shows(fills []int32) bool {
	for _, i := range fills {
		if r := e.running[i]; !r.private(r.indexed) {
			return true
		}
	}
	return false
}

// stuck says that nothing of the queue can enter while what runs goes on.
func (e *Engine) stuck() bool {
	switch {
	case e.queue.len() == 0, len(e.running) >= e.cfg.MaxSeqs:
		return true
	case e.cfg.Batching == Continuous && len(e.running) >= e.cfg.MaxBatchedTokens:
		return true
	}
	r := e.queue.first()
	hits, fresh := e.lookup(r)
	return e.need(r)-hits+fresh > e.pool.free
}

// bucket sorts the running requests by the pass, of the next round, in which
// they need a block and by that in which they fill one, keeping their order.
func (e *Engine) bucket(round int) {
	size := e.cfg.BlockSize
	if cap(e.takeAt) < size+2 {
		e.takeAt, e.fillAt = make([]int, size+2), make([]int, size+2)
	}
	e.takeAt, e.fillAt = e.takeAt[:round+2], e.fillAt[:round+2]
	clear(e.takeAt)
	clear(e.fillAt)
	// Counted two places behind, so that the sums are where each begins and,
	// once it is filled, ends.
	for _, r := range e.running {
		if k := r.room - r.computed; k < round {
			e.takeAt[k+2]++
		}
		if k := (r.indexed+1)*size - r.computed - 1; e.pool.share && k < round {
			e.fillAt[k+2]++
		}
	}
	for k := range round {
		e.takeAt[k+1] += e.takeAt[k]
		e.fillAt[k+1] += e.fillAt[k]
	}
	e.takeAt[round+1] += e.takeAt[round]
	e.fillAt[round+1] += e.fillAt[round]
	e.takes = resized(e.takes, e.takeAt[round+1])
	e.fills = resized(e.fills, e.fillAt[round+1])
	for i, r := range e.running {
		if k := r.room - r.computed; k < round {
			e.takes[e.takeAt[k+1]] = int32(i)
			e.takeAt[k+1]++
		}
		if k := (r.indexed+1)*size - r.computed - 1; e.pool.share && k < round {
			e.fills[e.fillAt[k+1]] = int32(i)
			e.fillAt[k+1]++
		}
	}
}

func resized(s []int32, n int) []int32 {
	if cap(s) < n {
		return make([]int32, n, 2*n)
	}
	return s[:n]
}
