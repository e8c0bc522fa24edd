// Command replay plays a trace against a serving engine and measures it.
package main

import (
	"os"
	"runtime"

	"reprise/backends/launch"
	"reprise/backends/sim"
	"reprise/internal/cli"
	"reprise/replay/selftest"
)

func main() {
	// The keeper of an engine, the embedded engine and the mock server are this
	// binary again, as a child.
	launch.MaybeKeep()
	sim.MaybeServe()
	selftest.MaybeServe()
	// The pacer and the wire client sleep in the kernel. When they wake, the
	// runtime must have a processor free for them, or they wait for up to 10 ms
	// until it takes one from a decoder.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	}
	os.Exit(cli.Main(app(), os.Args, os.Stdout, os.Stderr))
}
