// Capture turns production traffic of LLM services into a trace: from a
// recording proxy, from packets, or from the logs that are there already.
package main

import (
	"os"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	_ "reprise/traceformat/convert" // registers the public formats
)

func main() {
	privateFiles()
	os.Exit(cli.Main(app(), os.Args, os.Stdout, os.Stderr))
}

// commands are the subcommands; each file adds its own.
var commands []func() *ucli.Command

func app() *ucli.App {
	var list []*ucli.Command
	for _, c := range commands {
		list = append(list, c())
	}
	// In the order of how much each source can know.
	order := []string{"proxy", "packets", "logs", "compare"}
	slices.SortFunc(list, func(a, b *ucli.Command) int {
		return slices.Index(order, a.Name) - slices.Index(order, b.Name)
	})
	return &ucli.App{
		Name:      "capture",
		UsageText: "capture COMMAND [ARGUMENT...] [flags]",
		Description: `Capture turns production traffic of LLM services into a trace: lengths, times, limits,
keyed hashes of prompts and identities. Text, keys, headers and addresses are read in
memory and never written. Every input is recorded or counted under a reason.

Examples:
  capture proxy --listen :8080 --upstream http://127.0.0.1:8000 -o trace.parquet
  capture packets --interface eth0 --port 8000 -o trace.parquet
  capture packets --read monday.pcap.zst --port 8000 -o monday.parquet
  capture logs access.log.* -o trace.parquet
  capture compare from-logs.parquet from-packets.parquet

Exit status is 0 if done, 1 if it failed or the check did, 2 for a usage error, 130 if
interrupted.`,
		Commands: list,
	}
}

// words is a list for a message.
func words(list []string) string { return strings.Join(list, ", ") }
