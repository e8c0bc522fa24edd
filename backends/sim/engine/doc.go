// Package engine is a model of an LLM inference engine as a pure state machine:
// a scheduler, a paged KV cache with prefix sharing, and a cost model of one
// forward pass. It knows no sockets, goroutines or clocks, so the same code
// serves HTTP in real time and runs a discrete-event simulation.
//
// A step is one forward pass. [Engine.Step] chooses the batch and says how long
// the pass takes; [Engine.Done] ends it and yields its tokens:
//
//	for {
//		d, ok := e.Step(now)
//		if !ok { ... advance now to e.Wake() or to the next arrival ... }
//		now += d
//		for _, ev := range e.Done(now) { ... }
//	}
//
// Times are durations since any fixed origin and never run backwards. A step
// sees what had arrived by its start. No method may be called concurrently
// with another.
//
// # What is modelled
//
// Scheduling and memory follow vLLM's V1 scheduler, read from its source
// (0.32.0, synchronous scheduling), so that block, preemption and cache-hit
// counts agree with it:
//   - a budget of tokens per step; running requests first, one token each or
//     the rest of their prompt; then waiting ones, first come first served,
//     while sequences and blocks last. A prompt that does not fit the budget is
//     cut into chunks; a chunk that does not end the prompt yields no token;
//   - a request is admitted only if blocks for all its tokens so far are free.
//     When a running request finds no block, the last of the running (or the
//     least urgent) gives up its own, goes back to the head of the queue and
//     recomputes later. A step that preempts admits none;
//   - full blocks are found again by a hash chained over their prefix; a hit is
//     the longest run of full blocks and leaves at least one token to compute.
//     Freed blocks with a hash go to the tail of the free list, the end of the
//     sequence first, and the head is evicted first; blocks without one go to
//     the head. One block is the null block and holds nothing.
//
// [Static] batching pads a batch to its longest prompt and admits none until
// its longest answer ends. [PrefillFirst] runs prompts whole in steps of their
// own, during which decodes pause (Orca, vLLM V0).
//
// # What is not
//
// CUDA-graph padding, speculative decoding, asynchronous scheduling (which
// frees a finished request's blocks one step later), mixture of experts, the
// communication of tensor parallelism, the CPU time of tokenizers and
// detokenizers, swapping, LoRA, multi-modal inputs. Published systems that
// capture more, for comparison: Vidur, LLMServingSim 2.0, BLIS.
package engine

// IterationBounds are the bounds of vLLM's histogram of the tokens of one pass,
// where a prompt counts in the pass that ends it.
var IterationBounds = []float64{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}
