//go:build race

package wire

// raceEnabled loosens upper bounds of time: the detector slows everything.
const raceEnabled = true
