package findings

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"reprise/gpu"
	"reprise/internal/units"
)

// Limits of what disturbs a run: slowing by heat or a fault of the supply is
// worth mentioning at once, and for this share of the window, or this long, the
// run measures the cooling. A power cap is how such cards work under load: it is
// mentioned from the same share on, and never more.
const (
	throttleShare = 0.01
	throttleTime  = time.Second
)

// harmless are reasons for lower clocks that are no disturbance.
var harmless = map[string]bool{"sync_boost": true, "low_utilization": true, "reliability": true}

// capped are limits of power, by the names of the reasons and of the counters.
var capped = map[string]bool{"power": true, "sw_power_cap": true, "board_limit": true}

func (f *Findings) warn(format string, args ...any) {
	f.Warnings = append(f.Warnings, fmt.Sprintf(format, args...))
}

// environment judges the serving host.
func (a *analysis) environment(f *Findings) {
	e := &f.Environment
	if len(f.GPUs) == 0 {
		e.Verdict = Unwatched
		return
	}
	reason := func(format string, args ...any) { e.Reasons = append(e.Reasons, fmt.Sprintf(format, args...)) }
	doubt := func(format string, args ...any) { e.Warnings = append(e.Warnings, fmt.Sprintf(format, args...)) }
	window := a.in.To - a.in.From
	for _, g := range f.GPUs {
		for _, why := range slices.Sorted(maps.Keys(g.Throttled)) {
			sec := time.Duration(g.Throttled[why] * float64(time.Second))
			share := float64(sec) / float64(max(window, 1))
			text := fmt.Sprintf("%s was throttled for %s of %s: %s", g.Device, units.Duration(sec), units.Duration(window), strings.ReplaceAll(why, "_", " "))
			switch {
			case harmless[why]:
			case capped[why]:
				if share >= throttleShare {
					doubt("%s", text)
				}
			case share >= throttleShare || sec >= throttleTime:
				reason("%s", text)
			default:
				doubt("%s", text)
			}
		}
		if g.Fatal > 0 {
			reason("%s had %s uncorrected ECC errors", g.Device, units.Count(int64(g.Fatal)))
		}
		if g.Corrected > 0 {
			doubt("%s corrected %s ECC errors", g.Device, units.Count(int64(g.Corrected)))
		}
		for _, x := range slices.Compact(slices.Sorted(slices.Values(g.XIDs))) {
			reason("%s reported XID %d", g.Device, x)
		}
		a.processes(&g, reason, doubt)
	}
	switch {
	case e.Reasons != nil:
		e.Verdict = Disturbed
	case e.Warnings != nil:
		e.Verdict = Doubtful
	default:
		e.Verdict = Undisturbed
	}
}

// processes looks for others on the GPU. Which process is the engine's, nobody
// knows; but one that came or went during the run is none of it.
func (a *analysis) processes(g *GPU, reason, doubt func(string, ...any)) {
	steady, came, moved, pids := 0, 0, 0, 0
	var begun, ended time.Duration // of the source's own samples
	for _, k := range a.find(gpu.GPUProcesses) {
		x := a.series[k]
		if hostOf(k.Source) != g.Source || k.Device != g.Device || x.inside == 0 {
			continue
		}
		begun, ended = x.first.Time, x.last.Time
		steady, moved = int(x.min), int(x.max-x.min)
	}
	for _, k := range a.find(gpu.GPUProcessMemory) {
		x := a.series[k]
		if hostOf(k.Source) != g.Source || k.Device != g.Device || x.inside == 0 {
			continue
		}
		pids++
		slack := 3 * max(x.pace(), time.Second)
		if ended > 0 && (x.first.Time > max(begun, a.in.From)+slack || x.last.Time < min(ended, a.in.To)-slack) {
			came++
		}
	}
	switch n := max(came, moved); {
	case n > 0:
		reason("%s was shared: %s came or went during the run", g.Device, plural(n, "process", "processes"))
	case max(steady, pids) > 1:
		doubt("%s is held by %d processes: all of them should be the engine's", g.Device, max(steady, pids))
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
