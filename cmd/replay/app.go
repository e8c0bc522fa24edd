package main

import (
	"slices"

	"github.com/urfave/cli/v2"

	"reprise/gpu/nvml"
	icli "reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/replay"
)

func app() *cli.App {
	a := &cli.App{
		Name:      "replay",
		Metadata:  map[string]any{icli.NVML: nvml.Built},
		Usage:     "play a trace against a serving engine and measure it",
		UsageText: "replay TRACE [--backend NAME[=URL]] [-o DIR] [flags]",
		Description: `
Replay sends the requests of TRACE at the times they were recorded, with the token
lengths they had, and writes a run directory: trace.parquet (the same requests with
what happened to each), run.json, latency.hlog. TRACE is any format that "trace info"
reads, also .gz, .zst, a run directory, - for standard input, or model:NAME (synth models
lists them). Without --backend it plays against the embedded simulated engine. The summary
goes to standard output.

With several backends it is an A/B: --repeat runs of each, one after another in an order
that no drift favours, then the comparison with the first one. DIR then holds plan.json, a
folder of runs, report.txt, .md and .json; the same command with that DIR goes on
where it was stopped. See docs/ab.md.

Examples:
  replay trace.parquet
  replay model:azure-conv --duration 5m
  replay azure.csv --duration 2m --speedup 4 --backend sim=llama-3-8b@a100
  replay trace.parquet --backend vllm --url http://127.0.0.1:8000 -o run/
  replay trace.parquet --backend sglang=http://127.0.0.1:30000 --too-long skip --slo 'ttft<500ms'
  replay trace.parquet --backend vllm=http://127.0.0.1:8000 --backend sglang=http://127.0.0.1:30000 --repeat 5
  replay trace.parquet --backend off:sim --backend on:sim --option off:prefix-caching=false --repeat 3

Exit status is 0 if the run is done and faithful, 1 if it failed, 2 for a usage error,
3 if it is done but this machine was the bottleneck, 130 if it was interrupted (partial
results are kept).`,
		Flags:    slices.Concat(runFlags(), sequenceFlags()),
		Action:   uploaded(play),
		Commands: []*cli.Command{selftestCommand(), agentCommand(), experimentCommand(), kubernetesCommand(), simFitCommand()},
	}
	a.Commands = append(a.Commands, searchCommand(a.Flags))
	return a
}

// runFlags are those of one run.
func runFlags() []cli.Flag {
	d := replay.Defaults()
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "backend", Usage: "what to play against: `NAME`, NAME=URL, sim=PRESET or sim=cost.json (of sim-fit); there are sim, vllm, sglang, openai; several are compared, LABEL:NAME=URL tells two of a kind apart", DefaultText: "sim"},
		&cli.StringFlag{Name: "url", Usage: "`URL` of the server"},
		&cli.StringFlag{Name: "model", Usage: "`NAME` of the model at the server", DefaultText: "what the server says"},
		&cli.StringSliceFlag{Name: "option", Usage: "`KEY=VALUE` for the backend, for example max-num-seqs=64 (sim), api=v1 (sglang); of several, LABEL:KEY=VALUE is for one"},
		&cli.BoolFlag{Name: "chat", Usage: "send text to the chat endpoint in place of token ids"},
		&cli.StringFlag{Name: "tokenizer", Usage: "the model's tokenizer.json `FILE`: makes text prompts of exact length where the server has no /tokenize"},
		&cli.StringFlag{Name: "api-key-env", Value: "REPRISE_API_KEY", Usage: "environment `VARIABLE` that holds the server's bearer token"},

		&cli.BoolFlag{Name: "virtual", Usage: "simulate the run in virtual time (sim alone): nothing waits, and every run gives the same result; see docs/simulation.md"},
		&cli.StringFlag{Name: "chunks", Value: "on", Usage: "with --virtual, record the time of every token: `on|off`"},

		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "run `DIR` to write; s3://, gs:// and azblob:// with make cloud", DefaultText: "run-DATE-TIME"},
		&cli.BoolFlag{Name: "force", Usage: "replace the run that is in DIR"},
		&cli.BoolFlag{Name: "json", Usage: "print the summary as JSON"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress on standard error"},

		&cli.Float64Flag{Name: "speedup", Value: d.Speedup, Usage: "play `N` times as fast as recorded"},
		&cli.DurationFlag{Name: "start", Usage: "begin at this `TIME` of the trace"},
		&cli.DurationFlag{Name: "duration", Usage: "play this much `TIME` of the trace"},
		&cli.Int64Flag{Name: "limit", Usage: "play at most `N` rows"},
		&cli.IntFlag{Name: "loop", Value: d.Loop, Usage: "play it `N` times over, with new prompts each time"},
		&cli.DurationFlag{Name: "warmup", Usage: "play the first `TIME` of the trace without measuring it"},
		&cli.IntFlag{Name: "max-in-flight", Usage: "shed requests beyond `N` running at once; 0: no limit"},
		&cli.Uint64Flag{Name: "seed", Value: d.Seed, Usage: "`N` that prompts are made from"},

		&cli.StringFlag{Name: "sessions", Value: string(d.Sessions), Usage: "what a later turn waits for: `recorded|think|both`; its recorded time, the answer and the recorded pause, or the later of the two"},
		&cli.StringFlag{Name: "session-header", Usage: "send each request's session, as a pseudonym, in the header `NAME`, such as X-Session-Id", DefaultText: "none"},
		&cli.StringFlag{Name: "aborts", Value: string(d.Aborts), Usage: "where the recorded client hung up, do so at the same `time|tokens|off`"},
		&cli.StringFlag{Name: "arrival", Usage: "in place of the recorded times, a `PROCESS`: constant, poisson or gamma:cv=N"},
		&cli.StringFlag{Name: "rate", Usage: "requests a second of --arrival: `N`, or stages 5:30s,5..40:2m,40:1m"},
		&cli.Float64Flag{Name: "scale-rate", Value: d.ScaleRate, Usage: "superpose `N` independent copies of the traffic"},
		&cli.IntFlag{Name: "concurrency", Usage: "closed loop: `N` sessions at a time in place of arrivals"},
		&cli.IntFlag{Name: "batch", Usage: "static batches: `N` requests of the trace as one, or at once where the server takes no lists of prompts, and the next batch when all are answered; --concurrency is then in batches"},
		&cli.StringFlag{Name: "shard", Usage: "play part `i/n` of the run (i from 0)", DefaultText: "from a Kubernetes Indexed Job or a Slurm array"},

		&cli.StringFlag{Name: "cache", Value: string(d.Cache), Usage: "the server's prefix cache at the start: `warm|cold|salt`; as it is, flushed, or kept apart by a salt (salt=NAME: by this one)"},
		&cli.StringFlag{Name: "too-long", Value: string(d.TooLong), Usage: "rows beyond the model's context, or shorter than its chat template: `fail|clip|skip`"},
		&cli.StringFlag{Name: "missing", Value: string(d.Missing), Usage: "rows without known lengths: `fail|skip`"},
		&cli.IntFlag{Name: "max-model-len", Usage: "context of the model in `TOKENS`", DefaultText: "what the server says"},
		&cli.IntFlag{Name: "vocab-size", Usage: "send token ids below `N`", DefaultText: "what the server says"},
		&cli.IntFlag{Name: "max-prompt-len", Usage: "bound prompts to `TOKENS`", DefaultText: "what the server says"},
		&cli.IntFlag{Name: "min-token-id", Usage: "send token ids from `N` on", DefaultText: "what the server says"},
		&cli.StringFlag{Name: "format", Usage: "source `FORMAT` of the trace", DefaultText: "detected"},
		&cli.BoolFlag{Name: "dequantise", Usage: "spread arrivals within the tick of the source's clock"},

		&cli.StringSliceFlag{Name: "slo", Usage: "goodput counts requests that meet it, for example 'ttft<500ms'; `METRIC<TIME` of ttft, tpot, e2e"},
		&cli.DurationFlag{Name: "max-send-error", Usage: "the run is valid while the send error's p99 is at most `TIME`", DefaultText: "5ms, and at most 1 % of the median TTFT but no less than 1ms"},
		&cli.Float64Flag{Name: "max-prompt-error", Value: metrics.DefaultLimits().PromptShare, Usage: "and while no prompt sent as text is off by more than this `SHARE` of its tokens"},
		&cli.StringFlag{Name: "metrics-as", Usage: "also print the figures by another `TOOL`'s formulas: vllm, sglang, aiperf, guidellm, genai-perf"},

		&cli.IntFlag{Name: "retries", Value: d.Retries, Usage: "send a request that got no answer up to `N` times more"},
		&cli.DurationFlag{Name: "connect-timeout", Value: defaultConnect, Usage: "`TIME` to open a connection"},
		&cli.DurationFlag{Name: "first-token-timeout", Value: d.FirstTokenTimeout, Usage: "`TIME` to the first token; 0: any"},
		&cli.DurationFlag{Name: "idle-timeout", Value: d.IdleTimeout, Usage: "`TIME` between two reads after it; 0: any"},
		&cli.DurationFlag{Name: "timeout", Value: d.TotalTimeout, Usage: "`TIME` for a whole request; 0: any"},
		&cli.DurationFlag{Name: "spin", Usage: "poll the clock for the last `TIME` before each send; sleeping is usually better: see docs/measurements.md"},
		&cli.DurationFlag{Name: "grace", Value: d.Grace, Usage: "`TIME` for requests in flight after an interrupt"},
		&cli.StringFlag{Name: "client", Value: "auto", Usage: "wire client: `auto|raw|std`"},
	}, slices.Concat(startFlags(), telemetryFlags(), []cli.Flag{syntheticFlag})...)
}
