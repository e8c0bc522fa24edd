package capture

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"reprise/internal/units"
	"reprise/traceformat"
)

// Why an input was seen and not recorded. Sources may use words of their own
// beside these: short, lower case, and never taken from the input.
const (
	ReasonHealthCheck = "health_check" // probes of a load balancer or an engine
	ReasonMetrics     = "metrics"      // /metrics and its like
	ReasonModelList   = "model_list"   // /v1/models and other requests for what is served
	ReasonNotLLM      = "not_llm"      // a path or a body of no endpoint that is known
	ReasonParse       = "parse_error"  // cannot be read, and nothing else says what it was
	ReasonRetry       = "retry"        // an attempt at a request that is recorded once
	ReasonDuplicate   = "duplicate"    // the same request seen at a second hop
	ReasonSampledOut  = "sampled_out"  // left out by --sample
	ReasonQueueFull   = "queue_full"   // recording could not keep up
	ReasonMemory      = "memory"       // the memory budget was spent
	ReasonIncomplete  = "incomplete"   // the request itself was cut off before anything could be told of it
	ReasonWrite       = "write_error"  // the trace could not be written
	ReasonRow         = "bad_row"      // what was seen makes no row that a reader would take
	ReasonPanic       = "panic"        // a fault of this program, contained
)

// Accounts says what became of every input: Seen = Recorded + the sum of
// Reasons + Open.
type Accounts struct {
	Seen     int64            `json:"seen"`
	Recorded int64            `json:"recorded"`
	Reasons  map[string]int64 `json:"dropped"`
	// Open counts exchanges that have begun and not ended, and answered
	// requests that are held back in case a retry follows. After
	// [Recorder.Close] it is 0.
	Open int64 `json:"open,omitempty"`
}

// Dropped is the sum of Reasons.
func (a Accounts) Dropped() int64 {
	var n int64
	for _, v := range a.Reasons {
		n += v
	}
	return n
}

// Check returns an error if the accounts do not add up.
func (a Accounts) Check() error {
	if a.Seen != a.Recorded+a.Dropped()+a.Open {
		return fmt.Errorf("%d inputs seen, %d recorded, %d dropped and %d open do not add up", a.Seen, a.Recorded, a.Dropped(), a.Open)
	}
	return nil
}

// String is the accounts on one line, reasons in alphabetical order.
func (a Accounts) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seen %s = recorded %s", units.Count(a.Seen), units.Count(a.Recorded))
	for _, reason := range slices.Sorted(maps.Keys(a.Reasons)) {
		fmt.Fprintf(&b, " + %s %s", reason, units.Count(a.Reasons[reason]))
	}
	if a.Open > 0 {
		fmt.Fprintf(&b, " + open %s", units.Count(a.Open))
	}
	return b.String()
}

// counts is the accounts as a header stores them, which knows nothing of open
// exchanges.
func (a Accounts) counts() traceformat.Counts {
	return traceformat.Counts{Seen: a.Seen - a.Open, Recorded: a.Recorded, Dropped: maps.Clone(a.Reasons)}
}
