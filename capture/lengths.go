package capture

import "reprise/traceformat"

// blockLengths learns how many tokens a block of bytes is, from the requests
// whose server says how long the prompt was.
type blockLengths struct{ tokens, bytes float64 }

// add takes a prompt of so many tokens, template included, and canonical bytes.
func (l *blockLengths) add(tokens int32, bytes int64) {
	l.tokens += float64(tokens)
	l.bytes += float64(bytes)
}

// size is the number of tokens in a block of bytes: the mean, or a quarter of
// the bytes before anything is known.
func (l *blockLengths) size(block int) int32 {
	n := float64(block) / 4
	if l.bytes > 0 {
		n = l.tokens / l.bytes * float64(block)
	}
	return int32(max(1, n+0.5))
}

// blocks is what the header says of block ids. r.mu is held.
func (r *Recorder) blocks() traceformat.Blocks {
	if r.o.Blocks != nil {
		return *r.o.Blocks
	}
	b := traceformat.Blocks{
		Scheme: BlockScheme, Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialDropped, Of: traceformat.BlocksOfContent,
	}
	if r.o.Tokenizer != nil {
		b.Size = int32(r.o.BlockTokens)
		return b
	}
	b.Bytes = int32(r.o.BlockBytes)
	b.Size = r.lengths.size(r.o.BlockBytes)
	return b
}

// BlockScheme is how block ids are made; the package comment has it in full.
const BlockScheme = "hmac-sha256-chain"
