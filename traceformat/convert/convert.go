// Package convert reads and writes the public formats of LLM request traces:
// the Azure LLM inference CSVs, BurstGPT, Mooncake, Qwen-Bailian, the session
// files of kv-cache-tester (WEKA), Vidur, Baseten Parquet and the request
// traces of Dynamo; and it reads the result files of other load generators, vllm
// bench serve, AIPerf and GuideLLM, as runs. FORMATS.md says for each which
// field becomes which column and what to look out for.
//
// Importing the package registers its formats, so that [traceformat.Open]
// reads them; [Export] writes five of them back. A row that is imported,
// stored as native Parquet and exported again is field for field what it was:
// what no column names, and the spelling of a number that its column cannot
// give back, is kept in Request.Extra under the source's own field name. Text
// of prompts and answers is dropped on import and never stored; the names of
// such fields are listed in Header.Extra under [DroppedFields].
//
// # Times
//
// Stamps are decimal text and become integer nanoseconds without passing
// through a float. Arrival counts from the first row; what the source's clock
// said then is Header.Start where the source has dates, and Header.Extra under
// [SourceStart] where it has only an offset. Header.Clock.Tick is the greatest
// common divisor of all distances from the first stamp that were read so far:
// of up to 10,000 rows when a file is opened, of the whole file after All. It
// is the format's own resolution while fewer than 16 distinct stamps were seen,
// and 0 where it is below the microsecond. Where all stamps are within 0.2 % of
// the ticks of a slower clock, that one is meant, and [TickJitter] in
// Header.Extra says how far they stray: Mooncake's are 3 s apart, but for 3 ms.
// A trace that stands still between
// ticks (Mooncake: 3 s, BurstGPT: 1 s) is best read with
// [traceformat.Dequantise], which spreads the rows of a tick uniformly over it.
// Each row draws from its own stream of the seed (parameter "seed", default 1);
// the draws of a tick are sorted, so that no row overtakes another. Export
// undoes it.
//
// # Parameters
//
// Formats take these through [traceformat.Param]:
//
//	seed        unsigned integer: seed of Dequantise (all; default 1)
//	lengths     cumulative or incremental: what the prompt length of a later
//	            turn counts. Mooncake files with sessions do not say and are
//	            refused without it. Also accepted by burstgpt and vidur.
//	block_size  tokens in a block, for Mooncake files that were made with
//	            another size than 512
//	sessions    kv-cache-tester: overlap (default) starts every session at 0,
//	            a duration ("30s") starts each that much after the one before
//	benchmark   GuideLLM: which of a file's benchmarks to read, from 0
//
// # Memory
//
// The text formats are read in a fixed amount of memory, whatever their length:
// 10,000 rows ahead, one line of at most 16 MiB, the rows of one tick under
// Dequantise, and a table of the conversations that were last active (about a
// million). A conversation that comes back after a million others starts anew.
// kv-cache-tester holds one session at a time, result files one request or list
// item of at most 16 MiB. Formats whose files are not in
// order of arrival are sorted on disk.
package convert

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"reprise/traceformat"
)

// Keys of Header.Extra that importers write.
const (
	// DroppedFields lists, comma-separated, the source's fields that hold or
	// may hold text and were left out.
	DroppedFields = "convert.dropped_fields"
	// SourceStart is the first stamp of a source that has offsets and no dates,
	// in nanoseconds.
	SourceStart = "convert.source_start_ns"
	// sourceStyle is how the source was spelt where its format leaves a choice.
	sourceStyle = "convert.style"
)

func init() {
	for _, f := range []traceformat.Format{
		azureFormat,
		bailianFormat,
		basetenFormat,
		burstGPTFormat,
		dynamoFormat,
		aiperfFormat,
		guidellmFormat,
		mooncakeFormat,
		vidurFormat,
		vllmBenchFormat,
		wekaFormat,
	} {
		traceformat.RegisterFormat(f)
	}
}

// params are the parameters of this package, checked.
type params struct {
	dequantise bool
	seed       uint64
	lengths    traceformat.LengthRule
	blockSize  int32
}

// readParams checks every parameter it knows; which of them a format heeds is
// up to the format.
func readParams(o *traceformat.OpenOptions) (params, error) {
	p := params{seed: 1}
	if o == nil {
		return p, nil
	}
	p.dequantise = o.Dequantise
	if s, ok := o.Params["seed"]; ok {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return p, fmt.Errorf("parameter seed is %q, want an unsigned integer", s)
		}
		p.seed = v
	}
	if s, ok := o.Params["lengths"]; ok {
		p.lengths = traceformat.LengthRule(s)
		if p.lengths != traceformat.LengthsCumulative && p.lengths != traceformat.LengthsIncremental {
			return p, fmt.Errorf("parameter lengths is %q, want cumulative or incremental", s)
		}
	}
	if s, ok := o.Params["block_size"]; ok {
		v, err := strconv.ParseInt(s, 10, 32)
		if err != nil || v < 1 || v > maxTokens {
			return p, fmt.Errorf("parameter block_size is %q, want a number of tokens", s)
		}
		p.blockSize = int32(v)
	}
	return p, nil
}

// newHeader is what all importers say of themselves.
func newHeader(dialect string) *traceformat.Header {
	return &traceformat.Header{
		Version: traceformat.Version,
		Clock:   traceformat.Clock{Source: "log"},
		Origin:  traceformat.Origin{Program: "import", Dialect: dialect},
		Sorted:  true,
		Extra:   map[string]string{},
	}
}

// style is how a text source was spelt where its format leaves a choice: a list
// of words, kept in the header so that an export can follow it.
type style []string

func (s *style) add(word string) {
	if !slices.Contains(*s, word) {
		*s = append(*s, word)
	}
}

// has reports whether the header says that the source was spelt so.
func hasStyle(h *traceformat.Header, word string) bool {
	return slices.Contains(strings.Split(h.Extra[sourceStyle], ","), word)
}
