// Package report reads what runs left behind and says what it means.
//
// [Analyse] computes the figures of a run directory or of any trace from its
// rows, by the definitions of internal/metrics, and [Merge] joins the shards of
// one run into that run. A report reads files and knows nothing of the program
// that wrote them: [Manifest] is what it takes from a run.json.
//
// # Joining shards
//
// A trace that is too much for one machine is played by n, each with
// --shard i/n. Merge makes of their n directories the one that a single big
// machine would have written. Nothing is averaged: rows are put together and
// every figure is computed from all of them, so that percentiles are as exact
// as those of one run. What is not of one run is refused: the plan's digest,
// the seed and every other option, the build that played, the server and its
// model must be the same, the shards 0 to n-1 of one n must all be there, and
// no request may be in two of them. Two runs of the same shard are repeats,
// which are never pooled.
//
// # One axis
//
// The zero of a shard is the wall clock of its first scheduled send, as its own
// machine tells it. The zero of the whole is the common --start-at, or the
// earliest of these. The schedule is that of the one plan, and stays; the clocks
// of what happened (wake_ns, conn_ns, sent_ns, headers_ns, first_event_ns,
// close_ns) move by the shard's offset, its zero less that of the whole. A shard
// that began late has sent all its requests late, and the send error says so.
// What the clocks of two machines disagree by is in no run and in no offset: it
// blurs what is said of several shards at a time (in flight, the timeline), and
// not the latencies of a request, which one clock took.
//
// All shards load one server, and each may have watched it. The telemetry of the
// whole is that of the shard that read most, moved by its offset; what it says
// together with requests is computed from the rows of all.
package report
