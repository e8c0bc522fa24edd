package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/capture/proxy"
	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/traceformat"
)

func init() { commands = append(commands, proxyCommand) }

func proxyCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "proxy",
		Usage:     "stand in front of a service and record what passes",
		UsageText: "capture proxy --listen ADDR --upstream URL [-o FILE] [flags]",
		Description: `Proxy passes every request to one upstream and every answer back as it comes: nothing is
buffered, added or changed but for what is between two neighbours. What flows past is
recorded into FILE. Recording never holds traffic up: what it cannot keep up with is
dropped and counted, and a fault or a full disk switches it off while traffic goes on.
Without -o it is a plain proxy.

SIGTERM stops accepting, lets streams end for as long as --drain, and finishes the file.
SIGHUP goes on in a new file and reads the certificate again. For a restart without a
refused connection, let systemd hold the socket (a .socket unit; --listen is not needed
then), or start the new process with --reuse-port beside the old one and then stop that.

If FILE exists, or files are rolled, names are numbered: trace.000001.parquet.
/healthz and /metrics (Prometheus) are served at --admin.

Examples:
  capture proxy --listen :8080 --upstream http://127.0.0.1:8000 -o trace.parquet
  capture proxy --listen :8443 --cert tls.crt --cert-key tls.key --upstream http://127.0.0.1:8000 -o trace.parquet --roll-every 1h
  capture proxy --listen :8080 --upstream https://engine.internal --upstream-ca ca.pem --sample 1/16 -o trace.parquet`,
		Flags: append([]ucli.Flag{
			&ucli.StringSliceFlag{Name: "listen", Usage: "take connections at `ADDR`, such as :8080; may be given more than once"},
			&ucli.StringFlag{Name: "upstream", Usage: "pass requests to `URL`: scheme, host and port"},
			&ucli.BoolFlag{Name: "reuse-port", Usage: "let another process listen on the same address (SO_REUSEPORT)"},
			&ucli.StringFlag{Name: "admin", Value: "127.0.0.1:9091", Usage: "serve /healthz and /metrics at `ADDR`; empty: nowhere"},
			&ucli.StringFlag{Name: "cert", Usage: "serve TLS with the certificate chain in `FILE`; read again when it changes"},
			&ucli.StringFlag{Name: "cert-key", Usage: "and its key in `FILE`"},
			&ucli.StringFlag{Name: "upstream-ca", Usage: "trust the authorities in `FILE` for an https upstream, and no others"},
			&ucli.BoolFlag{Name: "insecure", Usage: "do not verify an https upstream at all"},
			&ucli.BoolFlag{Name: "upstream-http2", Usage: "speak HTTP/2 to the upstream, without TLS by prior knowledge (h2c)"},
			&ucli.BoolFlag{Name: "forwarded", Usage: "add X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host"},
			&ucli.IntFlag{Name: "max-connections", Value: 16384, Usage: "most `N` client connections at a time; more wait"},
			&ucli.StringFlag{Name: "max-header", Value: "1MiB", Usage: "most `SIZE` of a head, either way"},
			&ucli.DurationFlag{Name: "header-timeout", Value: 10 * time.Second, Usage: "longest `TIME` for a client to send a head"},
			&ucli.DurationFlag{Name: "idle-timeout", Value: 2 * time.Minute, Usage: "longest `TIME` of a client connection without a request"},
			&ucli.DurationFlag{Name: "connect-timeout", Value: 5 * time.Second, Usage: "longest `TIME` to connect to the upstream"},
			&ucli.DurationFlag{Name: "upstream-header-timeout", Usage: "longest `TIME` for the upstream to begin its answer", DefaultText: "none: a prefill can take minutes"},
			&ucli.DurationFlag{Name: "upstream-idle", Value: 4 * time.Second, Usage: "use a connection to the upstream again within `TIME`; less than the upstream's own limit"},
			&ucli.DurationFlag{Name: "drain", Value: 10 * time.Minute, Usage: "longest `TIME` that streams go on after SIGTERM"},
			&ucli.DurationFlag{Name: "roll-every", Usage: "go on in a new file after `TIME`", DefaultText: "never"},
			&ucli.StringFlag{Name: "roll-size", Usage: "go on in a new file when the journal has reached `SIZE`", DefaultText: "never"},
			&ucli.StringFlag{Name: "queue-memory", Value: "64MiB", Usage: "most `SIZE` of traffic on its way to the recorder; beyond it records are dropped"},
		}, without(captureFlags(), "force", "json")...),
		Action: cli.Action(runProxy),
	}
}

func runProxy(ctx context.Context, c *ucli.Context) error {
	if c.NArg() > 0 {
		return cli.Usagef("capture proxy --help", "proxy takes no arguments")
	}
	weight := make([]byte, ballast)
	defer runtime.KeepAlive(weight)
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))
	o, files, err := proxyOptions(c, log)
	if err != nil {
		return err
	}
	// From here on: an early SIGHUP must not end the process.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	listeners, err := listenersOf(c)
	if err != nil {
		return err
	}
	var leftovers []string
	if files != nil {
		leftovers = files.Leftovers()
	}
	var admin net.Listener // before a recording begins, which would be left behind
	if addr := c.String("admin"); addr != "" {
		if admin, err = proxy.Listen(addr, c.Bool("reuse-port")); err != nil {
			closeAll(listeners)
			return fmt.Errorf("--admin %s: %w", addr, unaddressed(err))
		}
	}
	p, err := proxy.New(o)
	if err != nil {
		closeAll(listeners)
		if admin != nil {
			admin.Close()
		}
		return err
	}
	if admin != nil {
		srv := &http.Server{Handler: p.Admin(), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		go srv.Serve(admin)
		defer srv.Close()
	}
	if files != nil {
		// What an earlier process left is saved beside the traffic.
		go files.Recover(leftovers)
	}
	go func() {
		for range hup {
			p.Reload()
		}
	}()
	log.Info("taking connections", "recording", o.Record != nil)
	err = p.Serve(ctx, listeners...)
	log.Info("stopped")
	return err
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// listenersOf are those that systemd passed, and those of --listen.
func listenersOf(c *ucli.Context) (_ []net.Listener, err error) {
	list, err := proxy.Activated()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeAll(list)
		}
	}()
	for _, addr := range c.StringSlice("listen") {
		l, err := proxy.Listen(addr, c.Bool("reuse-port"))
		if err != nil {
			return nil, fmt.Errorf("--listen %s: %w", addr, unaddressed(err))
		}
		list = append(list, l)
	}
	if len(list) == 0 {
		return nil, cli.Usagef("--listen :8080", "proxy: where to listen?")
	}
	return list, nil
}

// unaddressed is a network error without the addresses in it.
func unaddressed(err error) error {
	if e, ok := err.(*net.OpError); ok {
		return e.Err
	}
	return err
}

func proxyOptions(c *ucli.Context, log *slog.Logger) (proxy.Options, *proxy.Files, error) {
	o := proxy.Options{
		UpstreamHTTP2: c.Bool("upstream-http2"),
		Certificate:   c.String("cert"), CertificateKey: c.String("cert-key"),
		Forwarded: c.Bool("forwarded"), MaxConnections: c.Int("max-connections"),
		ReadHeader: c.Duration("header-timeout"), Idle: c.Duration("idle-timeout"),
		ConnectTimeout: c.Duration("connect-timeout"), HeaderTimeout: c.Duration("upstream-header-timeout"),
		UpstreamIdle: c.Duration("upstream-idle"), Drain: c.Duration("drain"), Log: log,
	}
	usage := func(err error) error { return &cli.Error{Code: cli.Usage, Err: err} }
	if c.String("upstream") == "" {
		return o, nil, cli.Usagef("--upstream http://127.0.0.1:8000", "proxy: which service should receive the requests?")
	}
	u, err := url.Parse(c.String("upstream"))
	if err != nil {
		return o, nil, cli.Usagef("--upstream http://127.0.0.1:8000", "--upstream is no URL")
	}
	o.Upstream = u
	if o.MaxHeader, err = size(c, "max-header"); err != nil {
		return o, nil, err
	}
	if o.UpstreamTLS, err = upstreamTLS(c, u); err != nil {
		return o, nil, err
	}
	if err := o.Validate(); err != nil {
		return o, nil, usage(err)
	}
	if c.String("output") == "" {
		return o, nil, nil
	}
	r, files, err := recordOptions(c, log)
	o.Record = r
	return o, files, err
}

func upstreamTLS(c *ucli.Context, u *url.URL) (*tls.Config, error) {
	name, insecure := c.String("upstream-ca"), c.Bool("insecure")
	switch {
	case name == "" && !insecure:
		return nil, nil
	case u.Scheme != "https":
		return nil, cli.Usagef("", "--upstream-ca and --insecure are for an https upstream")
	case insecure && name != "":
		return nil, cli.Usagef("", "--insecure verifies nothing: --upstream-ca has no use beside it")
	case insecure:
		return &tls.Config{InsecureSkipVerify: true}, nil
	}
	pem, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: holds no certificate", name)
	}
	return &tls.Config{RootCAs: pool}, nil
}

func recordOptions(c *ucli.Context, log *slog.Logger) (*proxy.RecordOptions, *proxy.Files, error) {
	name := c.String("output")
	if name == "-" {
		return nil, nil, cli.Usagef("-o FILE", "proxy: a recording that rolls and recovers takes a file")
	}
	if traceout.Remote(name) {
		return nil, nil, cli.Usagef("-o FILE, and for each finished one: trace cp FILE NAME", "%s: proxy records on this machine, as traffic must not wait for a store", name)
	}
	if info, err := os.Stat(filepath.Dir(name)); err != nil || !info.IsDir() {
		return nil, nil, cli.Usagef("", "%s: no such folder", filepath.Dir(name))
	}
	r := &proxy.RecordOptions{RollEvery: c.Duration("roll-every")}
	var err error
	if r.Recorder, err = captureOptions(c); err != nil {
		return nil, nil, err
	}
	r.Recorder.Vantage = "proxy"
	r.Recorder.Clock = traceformat.Clock{Source: "monotonic"}
	if r.QueueMemory, err = size(c, "queue-memory"); err != nil {
		return nil, nil, err
	}
	if c.String("roll-size") != "" {
		if r.RollSize, err = size(c, "roll-size"); err != nil {
			return nil, nil, err
		}
	}
	files := &proxy.Files{Path: name, Roll: r.RollEvery > 0 || r.RollSize > 0, Log: log}
	r.Open = files.Open
	return r, files, nil
}

// ballast is never touched, so that it takes address space and no memory. With
// it, garbage may grow to some 32 MiB however little is in use, where collecting
// every 4 MiB would cost a tenth of the time; and no further than to
// gcPercent of what is in use when that is thousands of streams.
const (
	ballast   = 64 << 20
	gcPercent = 50
)
