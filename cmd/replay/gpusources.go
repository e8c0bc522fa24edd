package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/gpu"
	"reprise/gpu/agent"
	"reprise/gpu/nvml"
	"reprise/internal/cli"
)

// agentTokenEnv is the environment variable of the agent's token.
const agentTokenEnv = "REPRISE_AGENT_TOKEN"

// gpuFlags say where the GPUs are that serve.
func gpuFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringSliceFlag{Name: "gpu", Usage: "watch GPUs through `SOURCE`: nvml (of this host), agent=URL (a \"replay agent\"), dcgm=URL (a DCGM exporter), smi or smi=FILE (nvidia-smi, or what it wrote), off; several for several hosts",
			DefaultText: "nvml where the server is on this host"},
		&urfave.Float64Flag{Name: "gpu-rate", Value: float64(time.Second) / float64(nvml.DefaultPeriod), Usage: "read NVML `N` times a second"},
		&urfave.StringFlag{Name: "agent-token-file", Usage: "`FILE` that holds the agent's bearer token", DefaultText: agentTokenEnv + " of the environment"},
		&urfave.StringFlag{Name: "agent-ca", Usage: "`FILE` of the authority that signed the agent's certificate"},
		&urfave.StringFlag{Name: "agent-cert", Usage: "`FILE` of a certificate to show to the agent"},
		&urfave.StringFlag{Name: "agent-key", Usage: "`FILE` of its key"},
	}
}

// gpuSources makes the sources that the flags name. What cannot be opened is a
// source that says so: a run does not fail for it.
func gpuSources(c *urfave.Context, s *server) (sources []gpu.Source, err error) {
	rate := c.Float64("gpu-rate")
	if !(rate > 0 && rate <= maxRate) {
		return nil, cli.Usagef("", "--gpu-rate is %v, want up to %d times a second", rate, maxRate)
	}
	host := nvml.Options{Period: time.Duration(float64(time.Second) / rate)}
	named := c.StringSlice("gpu")
	if len(named) == 0 {
		// A simulated engine uses no GPU, and one elsewhere not this host's.
		if s.process != nil || s.info.Engine == "sim" || !isLocal(s.url) {
			return nil, nil
		}
		if sources, err = nvml.Open(host); err == nil {
			return sources, nil
		}
		for _, s := range sources {
			s.Close()
		}
		return nil, nil // nobody asked for it
	}
	defer func() {
		if err != nil {
			for _, s := range sources {
				s.Close()
			}
		}
	}()
	n := map[string]int{}
	name := func(kind string) string {
		n[kind]++
		if n[kind] == 1 {
			return kind
		}
		return fmt.Sprintf("%s%d", kind, n[kind]-1)
	}
	for _, what := range named {
		kind, value, has := strings.Cut(what, "=")
		switch {
		case kind == "off" && !has && len(named) == 1:
			return nil, nil
		case kind == "nvml" && !has && n[kind] == 0:
			name(kind)
			opened, err := nvml.Open(host)
			if opened == nil {
				opened = []gpu.Source{&closed{kind, err}}
			}
			sources = append(sources, opened...) // what cannot be read now tries again
		case kind == "smi" && (!has || value != ""):
			sources = append(sources, gpu.NewSMI(gpu.SMIOptions{Name: name("nvidia-smi"), File: value}))
		case kind == "dcgm" && value != "":
			d, err := gpu.NewDCGM(name(kind), value)
			if err != nil {
				return nil, cli.Usagef("--gpu dcgm=http://host:9400/metrics", "--gpu: %w", err)
			}
			sources = append(sources, d)
		case kind == "agent" && value != "":
			conf, err := agentTLS(c)
			if err != nil {
				return nil, err
			}
			token, err := agentToken(c)
			if err != nil {
				return nil, err
			}
			r, err := agent.NewRemote(agent.RemoteOptions{Name: name(kind), URL: value, Token: token, TLS: conf})
			if err != nil {
				return nil, cli.Usagef("--gpu agent=http://host:9402", "--gpu: %w", err)
			}
			sources = append(sources, r)
		default:
			return nil, cli.Usagef("", "--gpu is %q, want nvml, agent=URL, dcgm=URL, smi, smi=FILE or off", what)
		}
	}
	return sources, nil
}

// isLocal says whether an address is of this machine.
func isLocal(address string) bool {
	u, err := url.Parse(address)
	return err == nil && agent.Loopback(u.Hostname())
}

// agentToken is what a flag's file or the environment holds.
func agentToken(c *urfave.Context) (string, error) {
	token, err := readToken(c.String("agent-token-file"))
	return cmp.Or(token, os.Getenv(agentTokenEnv)), err
}

// agentTLS reads the files that the flags name.
func agentTLS(c *urfave.Context) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if file := c.String("agent-ca"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, cli.Usagef("", "--agent-ca: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, cli.Usagef("", "--agent-ca: %s holds no certificate", file)
		}
	}
	cert, key := c.String("agent-cert"), c.String("agent-key")
	switch {
	case cert == "" && key == "":
		return conf, nil
	case cert == "" || key == "":
		return nil, cli.Usagef("", "--agent-cert and --agent-key go together")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, cli.Usagef("", "--agent-cert: %w", err)
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}

// closed is a source that was asked for and is not in this build.
type closed struct {
	name string
	err  error
}

func (c *closed) Name() string          { return c.name }
func (c *closed) Period() time.Duration { return 5 * time.Second } // it will not change
func (c *closed) Close() error          { return nil }

func (c *closed) Sample(context.Context, func() time.Duration, func(gpu.Sample)) error { return c.err }
