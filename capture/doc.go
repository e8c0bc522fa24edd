// Package capture records production traffic of LLM services: an exchange seen
// anywhere, in a proxy, on the wire or in a log, becomes one row of a trace.
//
// A [Recorder] takes exchanges from a source ([Recorder.Begin]) or finished
// requests from a log ([Recorder.Record]) and writes rows to a [Sink]. It knows
// OpenAI's chat, completions, responses and embeddings, Anthropic's messages, and
// the native endpoints of vLLM, SGLang, TGI and llama.cpp; answers plain or as a
// stream of events; bodies under gzip, deflate, br or zstd.
//
// # What is kept
//
// Lengths, times, limits, and keyed hashes. Text of prompts and answers, headers,
// paths, addresses and credentials are read in memory, and neither written nor
// named in an error. Of headers, only those are asked for that the code names.
// The name of a model is kept if it looks like a name.
//
// # Accounts
//
// Every exchange that begins, and every Drop, counts as seen, and ends as
// recorded or under one named reason: [Accounts.Check]. Nothing is lost without
// a number.
//
// # Times
//
// A time is nanoseconds of the wall clock since the epoch. A request arrives with
// its first byte. Each event of a stream has the time of the read that completed
// it, so that events of one read have one time. TTFT is to the first event that
// carries a token: a role, a comment, message_start or response.created does not.
// An answer that is no stream has no TTFT.
//
// # Lengths
//
// The server's own count (usage) goes before the tokenizer's, and that before the
// number of events; the source columns say which it was. Token ids in a request
// are counted. The tokenizer counts the text of messages without a chat template.
// What depends on bytes that the capture lost is unknown, never guessed.
//
// # Prefix blocks
//
// Prompts are compared without a chat template, since the client does not see
// it. The canonical bytes of a request are, in this order,
//
//	tools      0xFA, then their definitions as JSON without white space
//	system     0xFF "system", then its content (Anthropic's system, Responses' instructions)
//	messages   for each: 0xFF role, its content, its tool calls
//
// where content is 0xFE text for each part of text, 0xFD and eight bytes that
// identify an image, a recording or a file, 0xFC name arguments for a tool call and
// 0xFB result for a tool's result. A prompt that is one text is that text; token
// ids are four bytes each, little endian. These tags occur in no UTF-8 text. With
// a tokenizer, text and tags are replaced by token ids of four bytes.
//
// The bytes are cut into blocks of 64 bytes (or 16 tokens); what does not fill the
// last one has no id. With K the key and | concatenation,
//
//	h(0) = HMAC-SHA256(K, "reprise/block" | 0x00)
//	h(i) = HMAC-SHA256(K, h(i-1) | block i)
//
// and the id of block i is the first 64 bits of h(i), big endian: equal ids mean
// equal prefixes, and nothing else can be told from them without K. The header has
// the block size, in tokens as measured on the requests whose server counted
// them, and the fingerprint of K. What remains visible is which prompts share how
// much, and all lengths and times; smaller blocks show more.
//
// # Sessions
//
// A session is what the client names: a header of the list, session_id,
// conversation, metadata.session_id. Otherwise a request belongs to the session of
// the earlier request of the same client whose messages, with or without the
// answer to them, its own messages begin with. Ends of 65,536 prompts are
// remembered. Turns of a session count arrivals; where two overtook each other the
// turn is unknown.
package capture
