// Package study says what an experiment found: cells × repeats of runs, reduced
// to one table, to the effect of each factor, and to an answer.
//
// [Read] reads an experiment's folder (plan.json, state.json, a folder of run
// directories) and computes a [Study]; [Study.WriteHTML], [Study.WriteMarkdown]
// and [Study.WriteText] show it, and [Write] leaves report.html, report.md and
// report.json in the folder.
//
// # What counts
//
// A figure of a cell is over its valid runs. A run that is invalid, partial,
// failed, skipped or still to come is listed with the reason and is in no figure.
//
// # Intervals
//
// All are at 95 %. From three valid repeats on, those of a cell are Student's
// over its repeats; of what is above zero everywhere, on a logarithmic scale,
// around the geometric mean. Below, they are the block bootstrap of the runs
// themselves, and hold nothing of what differs from run to run; a figure that a
// run has once has none then.
//
// Effects come from least squares over runs, with repeats as blocks: of
// latencies and rates in logarithms, so that an effect is a ratio, of shares and
// counts as a difference. The error is what cells differ by from repeat to
// repeat (cell × block); without repeats it is what factors and blocks do not
// explain, which takes interactions for noise.
package study
