package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/wallclock"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// Files of a run directory.
const (
	manifestFile  = "run.json"
	latencyFile   = "latency.hlog"
	telemetryFile = "telemetry.parquet"
)

// manifestVersion is the version of run.json that this package knows.
const manifestVersion = 1

// maxManifest bounds what is read of a run.json; those of the longest runs are
// some ten KiB.
const maxManifest = 64 << 20

// States of a run.
const (
	StateRunning  = "running"  // or killed: nobody wrote what became of it
	StateComplete = "complete" // every planned request was sent and has ended
	StatePartial  = "partial"
)

// A Manifest is what a report takes from a run.json. What it passes on without
// looking inside stays as it was written.
type Manifest struct {
	Version int             `json:"version"`
	State   string          `json:"state"`
	Reason  string          `json:"reason,omitempty"`  // why it is partial
	Virtual bool            `json:"virtual,omitempty"` // a simulation in virtual time
	Program Program         `json:"program"`
	Args    []string        `json:"args"`
	Options json.RawMessage `json:"options"`
	Trace   Trace           `json:"trace"`
	Plan    Plan            `json:"plan"`
	Server  Server          `json:"server"`
	Cache   json.RawMessage `json:"cache,omitempty"`
	Host    json.RawMessage `json:"host,omitempty"`
	Stats   *Stats          `json:"stats,omitempty"`
	// Telemetry is what the serving host did meanwhile, as package replay wrote it.
	Telemetry json.RawMessage  `json:"telemetry,omitempty"`
	Summary   *metrics.Summary `json:"summary,omitempty"`
	Warnings  []string         `json:"warnings,omitempty"`
	// Merge says what a run was joined from.
	Merge *Joined `json:"merge,omitempty"`
}

// A Program says which build wrote a run.
type Program struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
}

// A Trace says what was played.
type Trace struct {
	Name   string             `json:"name"`
	Rows   int64              `json:"rows_read"`
	Header traceformat.Header `json:"header"`
}

// A Plan says what was to be sent. Times are of the run.
type Plan struct {
	Digest       string           `json:"digest"`
	Base         time.Duration    `json:"base_ns"`
	Lap          time.Duration    `json:"lap_ns"`
	Span         time.Duration    `json:"span_ns"`
	Warmup       time.Duration    `json:"warmup_ns"`
	Rows         int64            `json:"requests"`
	All          int64            `json:"requests_of_all_shards"`
	Text         bool             `json:"prompts_as_text"`
	Clipped      int64            `json:"requests_clipped"`
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
	Backend string          `json:"backend"`
	URL     string          `json:"url,omitempty"` // empty for an embedded engine
	Client  string          `json:"client"`
	Wire    *wire.Stats     `json:"wire,omitempty"`
	Info    json.RawMessage `json:"info"`
}

// build names the build of a program.
func (p *Program) build() string {
	s := strings.TrimSpace(p.Version + " " + p.Revision[:min(len(p.Revision), 12)])
	if p.Modified {
		s += ", modified"
	}
	return s
}

// identity is what makes two servers the same kind: backend, engine version and
// model, as far as they are known.
func (s *Server) identity() string {
	var info struct {
		Version string `json:"version"`
		Model   string `json:"model"`
	}
	if len(s.Info) > 0 && json.Unmarshal(s.Info, &info) != nil {
		return s.Backend
	}
	return strings.TrimSpace(strings.Join(strings.Fields(s.Backend+" "+info.Version+" "+info.Model), " "))
}

// Stats say how the sending went.
type Stats struct {
	StartedAt   time.Time     `json:"started_at"` // wall clock of the run's zero
	Elapsed     time.Duration `json:"elapsed_ns"`
	Sent        int64         `json:"requests_sent"`
	Shed        int64         `json:"requests_shed"`
	Unsent      int64         `json:"requests_unsent"`
	Retries     int64         `json:"retries"`
	Peak        int64         `json:"in_flight_peak"`
	Interrupted bool          `json:"interrupted"`
	WarmError   string        `json:"warm_error,omitempty"`
	// Clock is the comparison that a common start rests on.
	Clock *wallclock.Check `json:"clock,omitempty"`
}

// ReadManifest reads the run.json of a run directory.
func ReadManifest(dir string) (*Manifest, error) {
	path := filepath.Join(dir, manifestFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxManifest:
		return nil, fmt.Errorf("%s: larger than %d MiB, which no run.json is", path, maxManifest>>20)
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func parseManifest(b []byte) (*Manifest, error) {
	m := new(Manifest)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, err
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("version %d of a run.json, want %d", m.Version, manifestVersion)
	}
	p := &m.Plan
	if p.Rows < 0 || p.All < 0 || p.Span < 0 || p.Warmup < 0 {
		return nil, errors.New("a count or time of the plan is negative")
	}
	return m, nil
}

// write makes a new run.json at path.
func (m *Manifest) write(path string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// config is what the figures of m are computed with.
func (m *Manifest) config() metrics.Config {
	c := metrics.Config{From: m.Plan.Warmup, To: m.Plan.Span, TokenIDs: !m.Plan.Text, Planned: m.Plan.Rows}
	if s := m.Summary; s != nil {
		c.Limits = s.Fidelity.Limits
		if s.Goodput != nil {
			for _, slo := range s.Goodput.SLOs {
				c.SLOs = append(c.SLOs, slo.SLO)
			}
		}
	}
	return c
}

// played is config over the window that the run had in the end: in a closed
// loop, and where turns wait for answers, the plan cannot know it.
func (m *Manifest) played() metrics.Config {
	c := m.config()
	if s := m.Summary; s != nil && s.Window.To > 0 {
		c.From, c.To = s.Window.From, s.Window.To
	}
	return c
}

// hold keeps what was found against a run when it was played, or joined: rows
// alone may not show it.
func hold(f *metrics.Fidelity, recorded *metrics.Summary) {
	if recorded == nil || recorded.Fidelity.Verdict != metrics.Invalid {
		return
	}
	object(f, recorded.Fidelity.Reasons...)
	if f.Bottleneck == "" {
		f.Bottleneck = recorded.Fidelity.Bottleneck
	}
}

// object makes f invalid for reasons that it does not know yet.
func object(f *metrics.Fidelity, reasons ...string) {
	known := map[string]bool{}
	for _, r := range f.Reasons {
		known[r] = true
	}
	for _, r := range reasons {
		if !known[r] {
			known[r] = true
			f.Reasons = append(f.Reasons, r)
		}
		f.Valid, f.Verdict = false, metrics.Invalid
	}
}

// isRun says whether dir has a run.json.
func isRun(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, manifestFile))
	return !errors.Is(err, fs.ErrNotExist) && err == nil
}
