// Package search finds the highest load at which a deployment keeps its SLOs.
//
// It plays nothing itself. A [Spec] says what is looked for; [Spec.Next] says,
// from the runs so far, which load to play next, and [Spec.Result] what is known.
// Both depend on nothing but their arguments, so that a search goes on from its
// file. [Measure] makes a [Measured] of the rows of a run, and a [Guard] watches
// one that goes on, to stop it when its outcome is certain.
//
// # Order of the runs
//
// A light run of one request at a time gives the floor of every latency; a burst
// gives the saturation throughput. From these two the first load to try is
// guessed, and each load after it by a model of what was measured: between two
// loads, the logarithm of a latency is a line in -log(1 - load / saturation), as
// that of a queue about is. The loads above saturation are no part of it: their
// latencies depend on how long one waits. Of them the model takes where
// saturation lies: the load times completions over arrivals.
//
// The search ends when the highest load that passed and the lowest that failed
// lie within [Spec.Within] of each other.
//
// # Verdicts
//
// A load passes an objective when the Wilson interval of the share of requests
// that met it lies above the share asked for, fails when it lies below, and is
// undecided otherwise. Requests of a queue miss together, so that they tell less
// than as many independent ones: where the share differs between stretches of the
// run by more than chance, the interval is that of a smaller sample.
//
// # Overload
//
// A run is overloaded when the requests in flight grew through it, by more than
// the unevenness of the arrivals explains, and faster than the arrivals did: by
// Little's law the time in the system then grew too, and the latencies are those
// of the length of the run.
package search
