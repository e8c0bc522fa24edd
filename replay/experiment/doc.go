// Package experiment plays the runs of several cells one after another, in an
// order that a drift of the machine does not favour anyone by, and goes on where
// it stopped.
//
// A [Cell] is one thing to measure: a backend, with what starts and stops it,
// and the trace and flags that are played against it. A [Matrix], the file of an
// experiment, expands to cells. A
// block holds one run of each cell, and a [Plan] as many blocks as there are
// repeats, so that the runs of a block are comparable and blocks are the outer
// level of statistics. A [Sequence] plays them.
//
// # Files
//
//	OUT/plan.json                cells, order, seed, flags, expected duration; written once, before the first run
//	OUT/state.json               what became of each run so far
//	OUT/runs/NNN-CELL-REPEAT/    a run directory each, with hook.log where the cell has hooks, and engine.json
//	                             and engine.log where the engine was started for it
//	OUT/runs/....failed-1        what is left of an attempt that failed
//	OUT/runs/....partial-1       of one that was interrupted or killed
//	OUT/runs/....replanned-1     of one that sent what another server cannot take
//
// plan.json and state.json are replaced atomically. Whoever dies at whatever
// moment leaves a folder from which a later Sequence continues: a run that is
// finished is never played again, and nothing that was measured is removed.
//
// The package plays nothing itself: how a run is played is its caller's.
package experiment
