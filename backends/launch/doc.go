// Package launch starts serving engines, waits until they serve, and ends them
// with everything that they started.
//
// A [Config] is a file: the command of an engine and its flags, by the field's
// own names. With the flags of one experiment's cell it becomes a [Spec], and
// [Start] an [Engine] of that.
//
// Between this process and the engine stands a keeper: this binary again, in a
// process group of its own. It adopts whatever the engine leaves behind
// (PR_SET_CHILD_SUBREAPER, on Linux), bounds the log, and ends the engine when it
// is told to or when the process that started it is gone, however that went.
// Programs that call [Start] call [MaybeKeep] first.
package launch
