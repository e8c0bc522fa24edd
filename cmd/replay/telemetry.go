package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/backends"
	"reprise/gpu"
	"reprise/gpu/agent"
	"reprise/internal/cli"
	"reprise/internal/enginemetrics"
	"reprise/replay"
)

// telemetryFlags are those of what is watched beside the requests.
func telemetryFlags() []urfave.Flag {
	return append([]urfave.Flag{
		&urfave.StringFlag{Name: "telemetry", Value: "on", Usage: "watch the engine, and GPUs where that is asked for: `on|off`"},
		&urfave.StringSliceFlag{Name: "metrics-url", Usage: "`URL` of a page of the engine's metrics, several for several engines", DefaultText: "/metrics of the server"},
		&urfave.Float64Flag{Name: "metrics-rate", Value: float64(time.Second) / float64(gpu.EnginePeriod), Usage: "scrape it `N` times a second; 0: never"},
		&urfave.StringFlag{Name: "metrics-addr", Usage: "serve the run's own metrics, for Prometheus, at `ADDR`, for example 127.0.0.1:9464"},
	}, gpuFlags()...)
}

// maxRate bounds rates of sampling: beyond it a page is asked for before the one
// before has come.
const maxRate = 100

// A watch is what the flags say of telemetry.
type watch struct {
	off     bool
	engines []gpu.EngineOptions
	sources []gpu.Source
	addr    string // of the run's own metrics
	local   bool   // which is one that this machine alone reaches
}

// watching reads the flags. Sources that it made are the caller's to close until
// they are started.
func watching(c *urfave.Context, s *server) (w *watch, err error) {
	w = &watch{addr: c.String("metrics-addr")}
	if w.addr != "" {
		host, _, err := net.SplitHostPort(w.addr)
		if err != nil {
			return nil, cli.Usagef("--metrics-addr 127.0.0.1:9464", "--metrics-addr: %q is not host:port", w.addr)
		}
		w.local = agent.Loopback(host)
	}
	switch v := c.String("telemetry"); v {
	case "on":
	case "off":
		w.off = true
		return w, nil
	default:
		return nil, cli.Usagef("", "--telemetry is %q, want on or off", v)
	}
	rate := c.Float64("metrics-rate")
	if !(rate >= 0 && rate <= maxRate) {
		return nil, cli.Usagef("", "--metrics-rate is %v, want 0 to %d times a second", rate, maxRate)
	}
	if rate > 0 {
		if w.engines, err = engines(c.StringSlice("metrics-url"), s, time.Duration(float64(time.Second)/rate)); err != nil {
			return nil, err
		}
	}
	w.sources, err = gpuSources(c, s)
	return w, err
}

// drop closes sources that were not started.
func (w *watch) drop() {
	for _, s := range w.sources {
		s.Close()
	}
}

// engines are the pages to scrape: those that were named, or the server's own
// where it is one whose metrics are known.
func engines(urls []string, s *server, period time.Duration) ([]gpu.EngineOptions, error) {
	tables := backends.AllMetrics()
	if t := backends.Metrics(s.info.Engine); t != nil {
		tables = []*enginemetrics.Table{t}
	}
	if len(urls) == 0 {
		if len(tables) != 1 {
			return nil, nil
		}
		urls = []string{s.url + "/metrics"}
	}
	server, _ := url.Parse(s.url)
	var all []gpu.EngineOptions
	for i, raw := range urls {
		o := gpu.EngineOptions{Name: "engine", URL: raw, Tables: tables, Model: s.info.Model, Period: period}
		if len(urls) > 1 {
			o.Name = fmt.Sprintf("engine%d", i)
		}
		// The key is the server's and goes to nobody else.
		if u, err := url.Parse(raw); err == nil && server != nil && u.Scheme == server.Scheme && u.Host == server.Host {
			o.Header = http.Header{}
			for _, h := range s.header {
				if h.Name == "Authorization" {
					o.Header.Set(h.Name, h.Value)
				}
			}
		}
		e, err := gpu.NewEngine(o)
		if err != nil {
			return nil, cli.Usagef("--metrics-url http://127.0.0.1:8000/metrics", "--metrics-url: %w", err)
		}
		e.Close()
		all = append(all, o)
	}
	return all, nil
}

// start begins to watch, and to serve metrics if that was asked for. stop ends
// the serving; the directory ends the watching.
func (w *watch) start(dir *replay.Dir, p *replay.Progress, stderr io.Writer) (t *replay.Telemetry, stop func(), err error) {
	stop = func() {}
	if !w.off {
		sources := w.sources
		w.sources = nil
		if t, err = dir.StartTelemetry(p, w.engines, sources...); err != nil {
			return nil, stop, err
		}
	}
	if w.addr == "" {
		return t, stop, nil
	}
	x, err := dir.Serve(w.addr, p)
	if err != nil {
		return t, stop, cli.Usagef("", "--metrics-addr: %w", err)
	}
	fmt.Fprintf(stderr, "metrics at http://%s/metrics\n", x.Addr)
	if !w.local {
		fmt.Fprintln(stderr, "warning: anyone who reaches this machine can read them: --metrics-addr 127.0.0.1:PORT keeps them here")
	}
	return t, func() { x.Close() }, nil
}
