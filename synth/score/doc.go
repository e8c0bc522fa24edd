// Package score measures how near one trace of LLM traffic comes to another:
// a synthetic one to the real one, or tomorrow's to today's.
//
// A [Sample] holds the columns of one trace that the metrics need. The metrics
// are plain functions of one or two Samples. [Compare] runs all that two
// Samples allow, sets each beside the noise floor of the reference itself (its
// interleaved blocks or its halves against each other) and judges it; a
// [Report] of that prints as text, JSON, Markdown and HTML.
//
// # Units
//
// Times are seconds from the start of the Sample, lengths are tokens, shares
// and distances run from 0 to 1. What cannot be measured is NaN in this
// package and null in JSON, and never a number that looks like a result.
//
// # Floors
//
// A distance between a model and held-out traffic means nothing beside that
// distance between two stretches of the traffic. Two splits are used: blocks
// of 60 s taken alternately, which differ by chance alone and so suit what
// should not change (lengths, their dependence); and halves, which also drift,
// and are what "another hour" can ask for (burstiness, queues, reuse).
package score
