package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/backends"
	"reprise/gpu"
	"reprise/gpu/agent"
	"reprise/gpu/nvml"
	"reprise/internal/cli"
)

const (
	// minToken is the least length of a token: 16 letters are guessed by nobody.
	minToken = 16
	// agentConns is how many connections an agent has at a time.
	agentConns = 64
)

func agentCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "agent",
		Usage:     "serve this host's telemetry to replays on other hosts",
		UsageText: "replay agent [--listen ADDR] [--token-file FILE] [flags]",
		Description: `
Agent samples the GPUs of this host, and the engines that it is told of, and serves
what it finds, read-only, over HTTP: to "replay --gpu agent=URL", which moves the times
to its own clock, and to Prometheus at /metrics. It runs no commands of others and
serves no files. At an address that other hosts reach it asks for a token or a client
certificate.

Examples:
  replay agent
  replay agent --listen :9402 --token-file token --tls-cert cert.pem --tls-key key.pem
  replay agent --gpu dcgm=http://127.0.0.1:9400 --engine http://127.0.0.1:8000/metrics`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "listen", Value: "127.0.0.1:9402", Usage: "serve at `ADDR`"},
			&urfave.StringFlag{Name: "token-file", Usage: "clients must send the bearer token that is in `FILE`"},
			&urfave.StringFlag{Name: "tls-cert", Usage: "serve HTTPS with the certificate in `FILE`"},
			&urfave.StringFlag{Name: "tls-key", Usage: "`FILE` of its key"},
			&urfave.StringFlag{Name: "client-ca", Usage: "clients must show a certificate of the authority in `FILE`"},
			&urfave.BoolFlag{Name: "insecure", Usage: "serve other hosts without asking who they are"},
			&urfave.StringSliceFlag{Name: "gpu", Usage: "watch GPUs through `SOURCE`: nvml, dcgm=URL, smi, smi=FILE or off; several are allowed", DefaultText: "nvml"},
			&urfave.Float64Flag{Name: "gpu-rate", Value: float64(time.Second) / float64(nvml.DefaultPeriod), Usage: "read NVML `N` times a second"},
			&urfave.StringSliceFlag{Name: "engine", Usage: "scrape the engine whose metrics are at `URL`; several are allowed"},
		},
		Action: serveAgent,
	}
}

func serveAgent(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usagef("a trace named like that is written ./agent", "agent takes no arguments, got %q", c.Args().First())
	}
	token, err := readToken(c.String("token-file"))
	if err != nil {
		return err
	}
	conf, err := serverTLS(c)
	if err != nil {
		return err
	}
	sources, absent, err := agentSources(c)
	if err != nil {
		return err
	}
	for _, a := range absent {
		fmt.Fprintf(c.App.ErrWriter, "not served: %s\n", a)
	}
	asks := token != "" || conf != nil && conf.ClientCAs != nil
	l, err := agent.Listen(c.String("listen"), agentConns, asks || c.Bool("insecure"))
	if err != nil {
		for _, s := range sources {
			s.Close()
		}
	}
	switch {
	case errors.Is(err, agent.ErrOpen):
		return cli.Usagef("--token-file FILE, or --tls-cert with --client-ca, or --insecure if that is meant", "--listen %s: %w", c.String("listen"), err)
	case err != nil:
		return fmt.Errorf("--listen: %w", err)
	}
	if host, _, _ := net.SplitHostPort(c.String("listen")); token != "" && conf == nil && !agent.Loopback(host) {
		fmt.Fprintln(c.App.ErrWriter, "warning: without --tls-cert, whoever reads the network learns the token")
	}
	scheme := "http"
	if conf != nil {
		l, scheme = tls.NewListener(l, conf), "https"
	}
	fmt.Fprintf(c.App.ErrWriter, "serving telemetry at %s://%s\n", scheme, l.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return runAgent(ctx, l, agent.Options{Token: token, Program: cli.Version(), Absent: absent}, sources, c.App.ErrWriter)
}

// runAgent serves until ctx ends. Sources report to stderr when they go down or
// come back.
func runAgent(ctx context.Context, l net.Listener, o agent.Options, sources []gpu.Source, stderr io.Writer) error {
	var sampler *gpu.Sampler
	server := agent.NewServer(o, func() []gpu.SourceStatus { return sampler.Status() })
	sampler = gpu.StartSampler(gpu.SamplerConfig{Emit: func(s gpu.Sample) {
		server.Add(s)
		if s.Metric == gpu.MetricUp && s.Attr == "" {
			name := strings.TrimSpace(s.Source + " " + s.Device)
			if s.Value == 0 {
				fmt.Fprintf(stderr, "%s: %s; asked again every few seconds\n", name, s.Note)
			} else {
				fmt.Fprintf(stderr, "%s: up\n", name)
			}
		}
	}}, sources...)
	web := agent.HTTP(server.Handler())
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(l) }()
	var err error
	select {
	case <-ctx.Done():
		web.Close()
		<-failed
	case err = <-failed:
	}
	return errors.Join(err, sampler.Close())
}

// readToken reads the token that clients must send, empty if there is no file.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", cli.Usagef("", "--token-file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minToken || strings.ContainsAny(token, " \t\r\n") {
		return "", cli.Usagef("head -c 24 /dev/urandom | base64 > token", "--token-file: %s holds no token, which is one word of at least %d letters", file, minToken)
	}
	return token, nil
}

// serverTLS is nil where HTTP is to be served.
func serverTLS(c *urfave.Context) (*tls.Config, error) {
	cert, key, ca := c.String("tls-cert"), c.String("tls-key"), c.String("client-ca")
	switch {
	case cert == "" && key == "" && ca == "":
		return nil, nil
	case cert == "" || key == "":
		return nil, cli.Usagef("", "--tls-cert and --tls-key go together, and --client-ca needs them")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, cli.Usagef("", "--tls-cert: %w", err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if ca == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, cli.Usagef("", "--client-ca: %w", err)
	}
	conf.ClientCAs, conf.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !conf.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, cli.Usagef("", "--client-ca: %s holds no certificate", ca)
	}
	return conf, nil
}

// agentSources makes the sources that the flags name. absent says what there
// is not, and why; the agent serves the rest.
func agentSources(c *urfave.Context) (sources []gpu.Source, absent []string, err error) {
	defer func() {
		if err != nil {
			for _, s := range sources {
				s.Close()
			}
		}
	}()
	rate := c.Float64("gpu-rate")
	if !(rate > 0 && rate <= maxRate) {
		return nil, nil, cli.Usagef("", "--gpu-rate is %v, want up to %d times a second", rate, maxRate)
	}
	named := c.StringSlice("gpu")
	if len(named) == 0 {
		named = []string{"nvml"}
	}
	count := map[string]int{}
	for _, what := range named {
		kind, value, has := strings.Cut(what, "=")
		name := kind
		if n := count[kind]; n > 0 {
			name = fmt.Sprintf("%s%d", kind, n)
		}
		count[kind]++
		switch {
		case kind == "off" && !has && len(named) == 1:
		case kind == "nvml" && !has && count[kind] == 1:
			opened, err := nvml.Open(nvml.Options{Period: time.Duration(float64(time.Second) / rate)})
			if opened == nil {
				absent = append(absent, "nvml: "+err.Error())
			}
			sources = append(sources, opened...) // without a driver they try again
		case kind == "smi" && (!has || value != ""):
			sources = append(sources, gpu.NewSMI(gpu.SMIOptions{Name: strings.Replace(name, "smi", "nvidia-smi", 1), File: value}))
		case kind == "dcgm" && value != "":
			d, err := gpu.NewDCGM(name, value)
			if err != nil {
				return sources, nil, cli.Usagef("--gpu dcgm=http://127.0.0.1:9400", "--gpu: %w", err)
			}
			sources = append(sources, d)
		default:
			return sources, nil, cli.Usagef("", "--gpu is %q, want nvml, dcgm=URL, smi, smi=FILE or off", what)
		}
	}
	for i, url := range c.StringSlice("engine") {
		o := gpu.EngineOptions{Name: "engine", URL: url, Tables: backends.AllMetrics()}
		if i > 0 {
			o.Name = fmt.Sprintf("engine%d", i)
		}
		e, err := gpu.NewEngine(o)
		if err != nil {
			return sources, nil, cli.Usagef("--engine http://127.0.0.1:8000/metrics", "--engine: %w", err)
		}
		sources = append(sources, e)
	}
	return sources, absent, nil
}
