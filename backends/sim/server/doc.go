// Package server puts a simulated engine behind HTTP, in real time, and speaks
// vLLM 0.32's API: completions and chat with their streams, models, tokenize,
// health, metrics and prefix-cache reset, with vLLM's field order, errors and
// metric names.
//
// One goroutine owns the engine's time. A pass that starts at t and takes d
// ends at exactly t+d, whenever the thread really woke: lateness delays tokens
// but never adds up. Each HTTP request has the goroutine that net/http gave it;
// tokens wait in its buffer, one event each, and become one event if it lags
// behind, as in vLLM. A client that hangs up frees its blocks at once.
//
// # Where it differs from vLLM
//
// Answers are made-up words. They end at max_tokens unless Options.MeanOutput
// gives answers a natural end. Stop strings, penalties, log probabilities,
// tools and structured outputs are accepted and have no effect; echo, beam
// search and images are refused.
//
// # Tokenizer
//
// See [Tokenize]. Ids from 1000 up to the vocabulary's 128000 are words of five
// letters with a leading space, so a text made from such ids comes back as the
// same ids. Chat prompts are framed like Llama 3's.
package server
