package engine

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// A Cost is the time of one forward pass as a function of its batch:
//
//	T = Step + Seq*R + max(Weights, Token*N) + Pair*P + KV*C
//
// R is the number of sequences, N the number of tokens computed, P the pairs of
// (new token, token it attends to) of the prefill chunks - a chunk of c tokens
// behind p earlier ones has c*p + c*(c+1)/2 - and C the tokens of context that
// the decodes read. Below the roofline knee, N = Weights/Token, a pass costs
// what reading the weights costs.
//
// All fields are nanoseconds.
type Cost struct {
	Step    float64 `json:"step_ns"`    // launch and scheduling, per step
	Seq     float64 `json:"seq_ns"`     // per sequence in the batch
	Weights float64 `json:"weights_ns"` // reading the weights once
	Token   float64 `json:"token_ns"`   // linear layers, per token
	Pair    float64 `json:"pair_ns"`    // prefill attention, per pair
	KV      float64 `json:"kv_ns"`      // decode attention, per token of context
	// Admit is what a request spends in the API server before it reaches the
	// queue. It overlaps with steps.
	Admit float64 `json:"admit_ns"`
}

// Validate reports every constant that is not a finite, non-negative time.
func (c Cost) Validate() error {
	var errs []error
	for _, f := range []struct {
		name string
		v    float64
	}{{"step", c.Step}, {"seq", c.Seq}, {"weights", c.Weights}, {"token", c.Token}, {"pair", c.Pair}, {"kv", c.KV}, {"admit", c.Admit}} {
		// A minute for one token is beyond any engine and keeps sums finite.
		if math.IsNaN(f.v) || f.v < 0 || f.v > float64(time.Minute) {
			errs = append(errs, fmt.Errorf("cost: %s_ns is %v, want 0 to 6e10", f.name, f.v))
		}
	}
	if c.Step == 0 && c.Weights == 0 && c.Token == 0 {
		errs = append(errs, errors.New("cost: a step takes no time: set step_ns, weights_ns or token_ns"))
	}
	return errors.Join(errs...)
}

// A load is the batch of one step in the terms of Cost.
type load struct {
	seqs, tokens int
	pairs, ctx   int64
}

// add counts a sequence that computes n tokens behind the first computed ones.
// A single new token is a decode: it reads its whole context once.
func (l *load) add(computed, n int) {
	l.seqs++
	l.tokens += n
	if n == 1 {
		l.ctx += int64(computed) + 1
		return
	}
	c, p := int64(n), int64(computed)
	l.pairs += c*p + c*(c+1)/2
}

func (c *Cost) of(l load) time.Duration {
	ns := c.Step + c.Seq*float64(l.seqs) + max(c.Weights, c.Token*float64(l.tokens)) +
		c.Pair*float64(l.pairs) + c.KV*float64(l.ctx)
	return max(1, time.Duration(ns)) // a step always advances time
}
