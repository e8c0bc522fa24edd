// Package sim is the embedded default backend: a simulated LLM engine in a
// child process of the same binary, so that it shares no scheduler and no
// garbage collector with the sender.
//
//	func main() {
//		sim.MaybeServe() // first: the child never returns from it
//		...
//		p, err := sim.Start(ctx, sim.Options{Preset: "llama-3-8b@a100"})
//		...
//		b, err := backends.Open("sim", backends.Config{URL: p.URL})
//		...
//		err = p.Stop()
//	}
//
// The engine itself, which knows no time but what it is told, is
// [reprise/backends/sim/engine]; its API over HTTP is
// [reprise/backends/sim/server]. The package registers the driver "sim", which
// speaks vLLM's dialect to a process that runs already.
package sim
