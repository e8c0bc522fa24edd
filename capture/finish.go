package capture

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"reprise/internal/llmapi"
	"reprise/internal/tokenizer"
	"reprise/traceformat"
)

// finish ends the exchange and writes its row. How is 0 for a complete answer.
func (x *Exchange) finish(t int64, how Ending) {
	if x.over {
		return
	}
	defer x.guard()
	x.at(t)
	if !x.ask.ended {
		x.endRequest(how == 0)
		if x.over {
			return
		}
	}
	a := &x.ans
	if a.dec != nil {
		if err := a.dec.close(); err != nil && how == 0 {
			a.lost, a.noText = true, true
		}
		a.dec = nil
	}
	if how == 0 && a.form != formStream && a.buf != nil && !a.lost {
		a.whole(x)
	}
	if x.r.o.Tokenizer != nil {
		a.tokenize(x)
	}
	row := x.row(how)
	end := turnEnd{session: x.link.session, client: x.ask.client, end: x.answered(), row: -1, known: a.spoken && !a.noText}
	var answered traceformat.Opt[uint64]
	if p := x.ask.prompt; p != nil && p.chain != nil && end.known && row.Result == traceformat.ResultOK {
		answered = traceformat.Some(p.chain.boundary())
	}
	p, reply := x.ask.prompt, a.id
	x.close()

	r := x.r
	r.mu.Lock()
	defer r.mu.Unlock()
	row.Arrival = time.Duration(x.begun - r.start)
	held := !x.sampledOut && r.settle(x, row)
	switch {
	case held: // and nothing continues what was refused
	case x.sampledOut:
		r.settle(x, nil)
		r.drop(ReasonSampledOut)
	default:
		if r.append(row) {
			end.row = row.ID
		}
		if p != nil && row.PromptTokensSource == traceformat.SourceUsage && p.bytes > 0 && !p.media {
			r.lengths.add(row.PromptTokens.V, p.bytes)
		}
	}
	delete(r.open, x)
	x.settled = true
	if end.session != nil && !held {
		r.threads.remember(r.key, end, p, answered, reply)
	}
}

// answered is when the answer was there, which is when the client can begin to
// think about it.
func (x *Exchange) answered() int64 {
	switch a := &x.ans; {
	case a.last.OK:
		return x.begun + int64(a.last.V)
	case a.lastAt != 0:
		return a.lastAt
	default:
		return x.last
	}
}

// row puts together what is known.
func (x *Exchange) row(how Ending) *traceformat.Row {
	q, a := &x.ask, &x.ans
	row := new(traceformat.Row)
	row.Endpoint, row.Client, row.Model = q.endpoint, q.client, q.ask.model
	row.Stream, row.MaxTokens, row.N, row.Temperature = q.ask.stream, q.ask.max, q.ask.n, q.ask.temperature
	if a.form == formStream && !row.Stream.OK {
		row.Stream = traceformat.Some(true)
	}
	if l := &x.link; l.session != nil {
		row.Session, row.Turn = traceformat.Some(l.session.id), l.turn
		if e := l.parent; e != nil && !(l.turn.OK && l.turn.V == 0) {
			if e.row >= 0 {
				row.Parent = traceformat.Some(e.row)
			}
			row.Think = traceformat.Some(time.Duration(x.begun - e.end))
		}
	}
	if p := q.prompt; p != nil {
		row.PrefixBlocks = p.blocks
		if !p.media {
			setLength(&row.PromptTokens, &row.PromptTokensSource, p.tokens, traceformat.SourceTokenizer)
		}
	}
	if a.status != 0 && a.status < 1000 {
		row.Status = traceformat.Some(int16(a.status))
	}
	row.Result, row.Error = x.outcome(how)
	row.FinishReason = a.finish
	if how == ClientAbort || row.Result == traceformat.ResultTimeout || row.Result == traceformat.ResultClientAbort {
		if row.Result != traceformat.ResultOK {
			row.Abort = traceformat.Some(x.since(x.last))
		}
	}
	x.measured(row)
	row.Extra = x.extra()
	return row
}

func setLength(n *traceformat.Opt[int32], source *string, v traceformat.Opt[int32], from string) {
	const most = 1 << 30 // what a row can hold
	if v.OK && v.V >= 0 && v.V <= most {
		*n, *source = v, from
	}
}

// measured fills lengths and times of the answer.
func (x *Exchange) measured(row *traceformat.Row) {
	a := &x.ans
	source := traceformat.SourceUsage
	if a.engines || row.Endpoint == traceformat.EndpointGenerate {
		source = traceformat.SourceEngine
	}
	setLength(&row.PromptTokens, &row.PromptTokensSource, a.prompt, source)
	if row.PromptTokens.OK && row.PromptTokensSource == source {
		row.CachedTokens = within(a.cached, row.PromptTokens)
	}
	row.ServerQueue, row.ServerPrefill, row.ServerTTFT, row.ServerE2E = a.queue, a.prefill, a.ttft, a.e2e
	if row.Endpoint == traceformat.EndpointEmbeddings {
		if row.Result == traceformat.ResultOK && a.lastAt != 0 {
			row.E2E = traceformat.Some(x.since(a.lastAt))
		}
		return
	}
	total, exact := a.total()
	switch {
	case total.OK:
		setLength(&row.OutputTokens, &row.OutputTokensSource, total, source)
	case a.counted.OK:
		setLength(&row.OutputTokens, &row.OutputTokensSource, a.counted, traceformat.SourceTokenizer)
	case !a.lost && a.first.OK:
		setLength(&row.OutputTokens, &row.OutputTokensSource, traceformat.Some(a.seen()), traceformat.SourceEvents)
	}
	if row.OutputTokens.OK {
		row.ReasoningTokens = within(a.reasoning, row.OutputTokens)
	}
	if a.form != formStream {
		if row.OutputTokens.OK && row.OutputTokens.V > 0 && a.lastAt != 0 {
			row.E2E = traceformat.Some(x.since(a.lastAt))
		}
		return
	}
	if !a.chunksLost {
		row.ChunkTimes, row.ChunkTokens = a.chunks(row, exact)
	}
	row.TTFT, row.E2E = a.first, a.last
	if n := len(row.ChunkTimes); n > 0 { // the end of a choice may be a token too
		row.TTFT, row.E2E = traceformat.Some(row.ChunkTimes[0]), traceformat.Some(row.ChunkTimes[n-1])
	}
	if row.TTFT.OK {
		row.TTFTSource = traceformat.TTFTContentEvent
	}
}

func within(n, all traceformat.Opt[int32]) traceformat.Opt[int32] {
	if n.OK && n.V > all.V {
		n.OK, n.V = false, 0
	}
	return n
}

// total is how many tokens the server says that it wrote, and whether the events
// said so one by one.
func (a *answerState) total() (n traceformat.Opt[int32], exact bool) {
	sum, exact := int64(a.one.tokens), a.one.exact
	for _, c := range a.others {
		sum, exact = sum+int64(c.tokens), exact && c.exact
	}
	// llama.cpp's last block counts one choice of several: the sum of the running
	// counts is the better total then. Elsewhere the two agree.
	if exact && sum <= 1<<30 && (!a.output.OK || sum > int64(a.output.V)) && (!a.lost || !a.output.OK) {
		return traceformat.Some(int32(sum)), true
	}
	return a.output, exact
}

// seen is the number of tokens that events were taken for.
func (a *answerState) seen() int32 {
	n := int64(a.one.tokens)
	for _, c := range a.others {
		n += int64(c.tokens)
	}
	return int32(min(n, 1<<30))
}

// chunks are the token-bearing events. Events that were taken for one token each
// are held against the total of the server: a token that ends a choice has no
// text, so that the event of the finish reason bears it; where the two disagree
// otherwise, nobody knows which event held more, and the tokens are left out.
func (a *answerState) chunks(row *traceformat.Row, exact bool) (times []time.Duration, tokens []int32) {
	if len(a.times) == 0 && len(a.bare) == 0 {
		return nil, nil
	}
	times, tokens = a.times, a.tokens
	if exact || !row.OutputTokens.OK || row.OutputTokensSource == traceformat.SourceEvents {
		return times, tokens
	}
	var sum int64
	for _, n := range tokens {
		sum += int64(n)
	}
	switch missing := int64(row.OutputTokens.V) - sum; {
	case missing == 0:
		return times, tokens
	case missing == int64(len(a.bare)):
		for _, at := range a.bare {
			i, _ := slices.BinarySearch(times, at+1)
			times, tokens = slices.Insert(times, i, at), slices.Insert(tokens, i, 1)
		}
		return times, tokens
	}
	return times, nil
}

// outcome says how the exchange ended: a Result constant and a short class.
func (x *Exchange) outcome(how Ending) (result, class string) {
	a := &x.ans
	if how != 0 && !x.complete() {
		switch {
		case a.status >= 400 && how != Truncated && how != Evicted:
			return a.refused()
		case how == ClientAbort:
			return traceformat.ResultClientAbort, "client_closed"
		case how == ServerReset:
			if a.fault != "" {
				return traceformat.ResultServerError, a.fault
			}
			return traceformat.ResultServerError, "connection_reset"
		case how == Timeout:
			return traceformat.ResultTimeout, "timeout"
		case how == Evicted:
			return traceformat.ResultTruncated, "evicted"
		}
		return traceformat.ResultTruncated, ""
	}
	switch {
	case a.status >= 300:
		return a.refused()
	case a.finish == "abort" || a.finish == "error":
		return traceformat.ResultServerError, a.fault
	case a.fault != "":
		return traceformat.ResultServerError, a.fault
	case x.complete():
		return traceformat.ResultOK, ""
	case a.gapped:
		return traceformat.ResultTruncated, "gap"
	case a.form == formStream && a.lost:
		return traceformat.ResultTruncated, "unreadable"
	case a.form == formStream && a.known:
		// An engine that dies says [DONE] too: it is no proof.
		return traceformat.ResultServerError, "truncated"
	case !a.begun:
		return traceformat.ResultServerError, "no_answer"
	case a.lastAt == 0 && !a.lost:
		return traceformat.ResultServerError, "empty_answer"
	}
	return traceformat.ResultOK, ""
}

// complete reports whether the answer came to its end, which a finish reason is,
// and of a server that gives none the block of usage with [DONE] after it.
func (x *Exchange) complete() bool {
	a := &x.ans
	return (a.status == 0 || a.status/100 == 2) && a.fault == "" &&
		(a.finish != "" && a.finish != "abort" && a.finish != "error" || a.finish == "" && a.done && a.summed)
}

// refused is the outcome of a status that is no success.
func (a *answerState) refused() (result, class string) {
	class = "http_" + strconv.Itoa(a.status)
	if !a.lost && len(a.buf) > 0 {
		class, _ = llmapi.HTTPFault(a.status, a.buf)
	} else {
		class = llmapi.Fault{Class: statusClass(a.status)}.Name(class)
	}
	switch {
	case a.status == 499: // nginx: the client hung up
		return traceformat.ResultClientAbort, class
	case a.status == http.StatusRequestTimeout || a.status == http.StatusGatewayTimeout:
		return traceformat.ResultTimeout, class
	case a.status < 500 || a.status == http.StatusServiceUnavailable:
		return traceformat.ResultRejected, class
	}
	return traceformat.ResultServerError, class
}

// statusClass is what a status says on its own.
func statusClass(status int) string {
	return llmapi.ReadFault(status, nil).Class
}

// tokenize counts an answer whose length no server says, and goes on with the
// chain of the conversation.
func (a *answerState) tokenize(x *Exchange) {
	if a.noText || len(a.text) == 0 {
		return
	}
	tok := x.r.o.Tokenizer
	p := x.ask.prompt
	ids := tok.Encode(nil, string(a.text), tokenizer.Options{})
	if len(ids) <= 1<<30 {
		a.counted = traceformat.Some(int32(len(ids)))
	}
	if p == nil || p.chain == nil {
		return
	}
	a.spoken = true
	w := &canon{c: p.chain, tok: tok, p: p}
	w.frame(frameMessage, []byte("assistant"))
	w.frame(frameText, nil)
	for _, id := range ids {
		w.id(id)
	}
}

// extra is what no column names, as a JSON object.
func (x *Exchange) extra() string {
	var b []byte
	add := func(name string, n int64) {
		if n == 0 {
			return
		}
		b = append(b, `,"`+name+`":`...)
		b = strconv.AppendInt(b, n, 10)
	}
	q := &x.ask
	if x.tries > 1 {
		add("attempts", int64(x.tries))
	}
	if p := q.prompt; p != nil {
		if p.batch > 1 {
			add("prompts", int64(p.batch))
		}
		add("images", int64(p.images))
		add("audio", int64(p.audio))
		add("files", int64(p.files))
		add("tools", int64(p.tools))
		add("tool_bytes", p.toolBytes)
	}
	if q.ask.user != "" {
		b = append(b, `,"user":"`+q.ask.user+`"`...)
	}
	if x.conn.LateJoin && !q.known {
		add("late_join", 1)
	}
	if x.ans.gapped || q.lost == ReasonIncomplete {
		add("gap", 1)
	}
	if len(b) == 0 {
		return ""
	}
	b[0] = '{'
	return string(append(b, '}'))
}
