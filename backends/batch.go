package backends

import (
	"bytes"
	"encoding/json"
	"fmt"

	"reprise/internal/llmapi"
)

// A Batcher is a Backend whose server takes several prompts as one request.
type Batcher interface {
	// Batches says whether EncodeBatch may be called, and whether the answers of
	// one batch have a length each; otherwise all are as long as the longest.
	Batches() (ok, lengths bool)
	// EncodeBatch appends the body of one streamed request with the prompts of
	// all calls, whose ID is that of the first. N and Stream of the calls are not
	// looked at.
	EncodeBatch(dst []byte, calls []*Call) (path string, body []byte)
}

// LongestCall is the first of calls with the answer length of the longest, for
// servers that have one length for all prompts of a request.
func LongestCall(calls []*Call) *Call {
	c := *calls[0]
	for _, o := range calls {
		c.MaxTokens = max(c.MaxTokens, o.MaxTokens)
	}
	c.N, c.Stream = 1, true
	return &c
}

// AppendPrompts appends the prompts of calls as a list of lists.
func AppendPrompts(dst []byte, calls []*Call) []byte {
	dst = append(dst, '[')
	for i, c := range calls {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = llmapi.AppendIDs(dst, c.PromptIDs)
	}
	return append(dst, ']')
}

// A BatchDecoder reads the answer to one request with several prompts. It must
// be used by one goroutine at a time.
type BatchDecoder struct {
	members []decoder
	chunk   llmapi.Chunk
}

// NewBatchDecoder returns a decoder for n prompts.
func NewBatchDecoder(n int) *BatchDecoder {
	d := &BatchDecoder{members: make([]decoder, n)}
	for i := range d.members {
		d.members[i].n = 1
	}
	return d
}

// Member is the decoder of one prompt, for its Result.
func (d *BatchDecoder) Member(i int) Decoder { return &d.members[i] }

// Event decodes the data of one event, and says which prompt it belongs to: -1
// where it is of none in particular. A usage block at the end, which adds up all
// prompts, says nothing of any of them.
func (d *BatchDecoder) Event(data []byte) (index int, ev Event, err error) {
	if string(bytes.TrimSpace(data)) == "[DONE]" {
		return -1, Event{Exact: true, Done: true}, nil
	}
	c := &d.chunk
	if err := c.Parse(data); err != nil {
		return -1, Event{}, d.bad("bad_event", fmt.Errorf("event of %d bytes: %w", len(data), err))
	}
	native := c.Choices == 0 && (c.Content || c.TokenIDs.OK)
	switch {
	case c.Error:
		for i := range d.members {
			d.members[i].fault("error_event", 0, data)
		}
		return -1, Event{Exact: true}, nil
	case c.Choices == 0 && !native:
		return -1, Event{Exact: true}, nil
	case c.Index < 0 || c.Index >= len(d.members):
		return -1, Event{}, d.bad("bad_event", fmt.Errorf("event of prompt %d, where %d were sent", c.Index, len(d.members)))
	}
	index, c.Index = c.Index, 0
	return index, d.members[index].take(c), nil
}

// Body decodes an answer that is no stream: an error, as batches are streamed.
func (d *BatchDecoder) Body(status int, data []byte) {
	for i := range d.members {
		if status < 200 || status > 299 || json.Valid(data) {
			d.members[i].Body(status, data)
		}
		if d.members[i].res.Error == "" {
			d.members[i].bad("bad_body", fmt.Errorf("body of %d bytes, where a stream was asked for", len(data)))
		}
	}
}

func (d *BatchDecoder) bad(class string, err error) error {
	for i := range d.members {
		d.members[i].bad(class, err)
	}
	return err
}
