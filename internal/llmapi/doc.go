// Package llmapi reads the bodies and event streams of LLM servers: the
// OpenAI-compatible completion and chat endpoints (vLLM, SGLang, llama.cpp and
// others) and SGLang's native /generate.
//
// [SSE] splits a stream into events, [Chunk.Parse] takes from an event, or from
// a whole body, the few fields that a measurement needs, and [Fault] names what
// went wrong in a refused request. All of it works on the wire's own bytes:
// texts are stepped over, never copied, never kept.
package llmapi
