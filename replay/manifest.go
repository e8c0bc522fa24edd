package replay

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"reprise/backends"
	"reprise/gpu/findings"
	"reprise/internal/build"
	"reprise/internal/durable"
	"reprise/internal/metrics"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// ManifestVersion is the version of run.json that this package writes.
const ManifestVersion = 1

// States of a run.
const (
	StateRunning  = "running"  // or killed: nobody wrote what became of it
	StateComplete = "complete" // every planned request was sent and has ended
	StatePartial  = "partial"  // stopped before that
)

// A Manifest is run.json: all that it takes to repeat the run, and what came
// of it. It holds no credentials: flags that carry them are left out.
type Manifest struct {
	Version int    `json:"version"`
	State   string `json:"state"`
	Reason  string `json:"reason,omitempty"` // why it is partial
	// Stopped is set where a search ended the run because its outcome was
	// certain: "hopeless" or "overload".
	Stopped string   `json:"stopped,omitempty"`
	Program Program  `json:"program"`
	Args    []string `json:"args"`
	// Virtual says that no server was asked and no time passed: all times are
	// those of a simulation.
	Virtual bool     `json:"virtual,omitempty"`
	Options Options  `json:"options"`
	Trace   TraceRef `json:"trace"`
	Plan    PlanRef  `json:"plan"`
	Server  Server   `json:"server"`
	// Words says what prompts are made of that went as text.
	Words *Words `json:"words,omitempty"`
	// Cache says what the server's prefix cache held and gave.
	Cache *CacheRecord `json:"cache,omitempty"`
	// Telemetry says what the serving host did meanwhile.
	Telemetry *findings.Record `json:"telemetry,omitempty"`

	// Simulation says what the simulated engine did, in virtual time.
	Simulation *Simulation `json:"simulation,omitempty"`

	Host  Host   `json:"host"`
	Stats *Stats `json:"stats,omitempty"`
	// Summary holds every metric and the fidelity verdict.
	Summary  *metrics.Summary `json:"summary,omitempty"`
	Warnings []string         `json:"warnings,omitempty"`
}

// A Program says which build played the run.
type Program struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from a changed tree
	Go       string `json:"go"`
}

// A TraceRef says what was played.
type TraceRef struct {
	Name   string             `json:"name"` // without its folder
	Rows   int64              `json:"rows_read"`
	Header traceformat.Header `json:"header"`
}

// A PlanRef is the part of a Plan that a reader of the run needs: how the
// trace's time became the run's, and what was left out.
type PlanRef struct {
	Digest       string           `json:"digest"`
	Base         time.Duration    `json:"base_ns"` // run time = (trace time - base + lap × lap number) / speedup
	Lap          time.Duration    `json:"lap_ns"`
	Span         time.Duration    `json:"span_ns"`   // of the sending, in run time
	Warmup       time.Duration    `json:"warmup_ns"` // in run time
	Rows         int64            `json:"requests"`
	All          int64            `json:"requests_of_all_shards"`
	Text         bool             `json:"prompts_as_text"` // and not as token ids
	Clipped      int64            `json:"requests_clipped"`
	Lengthened   int64            `json:"requests_lengthened,omitempty"` // to what the chat template leaves room for
	Skipped      map[string]int64 `json:"rows_skipped,omitempty"`
	PromptTokens int64            `json:"prompt_tokens"`
	OutputTokens int64            `json:"output_tokens"`
	PeakRate     int64            `json:"peak_requests_per_second"`
	Connections  int              `json:"connections_opened_ahead"`
	MaxLen       int              `json:"max_model_len,omitempty"`
	VocabLow     uint32           `json:"vocab_low"`
	VocabSize    uint32           `json:"vocab_size"`
	Forced       int64            `json:"prompts_sharing_one_token_too_many,omitempty"`
	Unseen       int64            `json:"prompt_blocks_not_compared,omitempty"`
}

// A Server says what was played against.
type Server struct {
	Backend string         `json:"backend"`
	URL     string         `json:"url,omitempty"` // without credentials; empty for the embedded engine
	Client  string         `json:"client"`        // which wire client carried the run
	Wire    *wire.Stats    `json:"wire,omitempty"`
	Info    *backends.Info `json:"info"`
}

// A Host describes the machine that sent.
type Host struct {
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	Kernel string `json:"kernel,omitempty"`
	CPU    string `json:"cpu,omitempty"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memory_bytes,omitempty"`
}

// ref is what the manifest keeps of the plan.
func (p *Plan) ref() PlanRef {
	return PlanRef{
		Digest: p.Digest, Base: p.Base, Lap: p.Lap, Span: p.Span(), Warmup: p.Warmup(), Rows: p.Rows, All: p.All, Text: p.Words != nil,
		Clipped: p.Clipped, Lengthened: p.Lengthened, Skipped: p.Skipped, PromptTokens: p.PromptTokens, OutputTokens: p.OutputTokens,
		PeakRate: p.PeakRate, Connections: min(p.Connections, MaxWarm), MaxLen: p.MaxLen, VocabLow: p.Vocab.Low, VocabSize: p.Vocab.Size, Forced: p.Forced, Unseen: p.Unseen,
	}
}

// NewManifest describes a run that is about to start.
func NewManifest(program string, args []string, p *Plan, trace string, s Server) *Manifest {
	b := build.Read()
	m := &Manifest{
		Version: ManifestVersion, State: StateRunning, Args: args, Options: p.Options,
		Trace: TraceRef{Name: filepath.Base(trace), Rows: p.Read, Header: p.Header},
		Plan:  p.ref(), Server: s, Host: thisHost(),
		Program: Program{Name: program, Version: b.Version, Revision: b.Revision, Modified: b.Modified, Go: b.Go},
		Words:   p.Words,
	}
	if p.Words != nil {
		m.Warnings = append(m.Warnings, p.Words.Warnings...)
	}
	return m
}

// Write replaces run.json in dir, atomically and so that it survives a crash.
func (m *Manifest) Write(dir string) error {
	return durable.WriteJSON(filepath.Join(dir, ManifestFile), m)
}

func thisHost() Host {
	h := Host{OS: runtime.GOOS, Arch: runtime.GOARCH, Cores: runtime.NumCPU()}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				h.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kb int64
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
				for _, c := range strings.TrimSpace(v) {
					if c < '0' || c > '9' {
						break
					}
					kb = kb*10 + int64(c-'0')
				}
				h.Memory = kb << 10
				break
			}
		}
	}
	return h
}

// ReadManifest reads the run.json of a run directory.
func ReadManifest(dir string) (*Manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		return nil, err
	}
	m := new(Manifest)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, ManifestFile), err)
	}
	if m.Version != ManifestVersion {
		return nil, fmt.Errorf("%s: version %d, want %d", filepath.Join(dir, ManifestFile), m.Version, ManifestVersion)
	}
	return m, nil
}
