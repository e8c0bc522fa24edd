package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"reprise/gpu"
	"reprise/gpu/agent"
	"reprise/gpu/nvml"
	"reprise/internal/clock"
)

// An agentProcess is a running `replay agent`.
type agentProcess struct {
	cmd  *exec.Cmd
	url  string
	said func() string // standard error so far
	done chan error
}

// startAgent runs the agent and waits until it serves.
func startAgent(t *testing.T, args ...string) *agentProcess {
	t.Helper()
	path, err := exec.LookPath("replay") // testscript.Main put it there
	if err != nil {
		t.Fatal(err)
	}
	p := &agentProcess{cmd: exec.Command(path, append([]string{"agent"}, args...)...), done: make(chan error, 1)}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	var mu sync.Mutex
	var text strings.Builder
	p.said = func() string { mu.Lock(); defer mu.Unlock(); return text.String() }
	found := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		serving := regexp.MustCompile(`^serving telemetry at (\S+)$`)
		for lines.Scan() {
			mu.Lock()
			text.WriteString(lines.Text() + "\n")
			mu.Unlock()
			if m := serving.FindStringSubmatch(lines.Text()); m != nil {
				found <- m[1]
			}
		}
		p.done <- p.cmd.Wait()
	}()
	select {
	case p.url = <-found:
	case err := <-p.done:
		t.Fatalf("the agent ended with %v: %s", err, p.said())
	case <-time.After(30 * time.Second):
		t.Fatalf("the agent does not serve: %s", p.said())
	}
	return p
}

// smiCSV writes a file as nvidia-smi would, and returns what appends to it.
func smiCSV(t *testing.T) (path string, add func(watts float64)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "smi.csv")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fmt.Fprintln(f, "index, name, power.draw.instant [W]")
	return path, func(watts float64) { fmt.Fprintf(f, "0, NVIDIA H100, %.2f W\n", watts) }
}

// watts reads what a remote gives until the power is w, and returns all of it.
func watts(t *testing.T, r *agent.Remote, w float64) (all []gpu.Sample) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for ; ; time.Sleep(20 * time.Millisecond) {
		err := r.Sample(ctx, clock.Now, func(s gpu.Sample) { all = append(all, s) })
		if ctx.Err() != nil {
			t.Fatalf("no %v W: %v; %d samples", w, err, len(all))
		}
		for _, s := range all {
			if s.Metric == gpu.GPUPower && s.Value == w {
				return all
			}
		}
	}
}

func TestAgentServes(t *testing.T) {
	path, add := smiCSV(t)
	add(100)
	p := startAgent(t, "--listen", "127.0.0.1:0", "--gpu", "smi="+path)
	r, err := agent.NewRemote(agent.RemoteOptions{URL: p.url})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Sample(t.Context(), clock.Now, func(gpu.Sample) {}); err != nil {
		t.Fatal(err)
	}
	from := clock.Now()
	add(250)
	all := watts(t, r, 250)
	to := clock.Now()
	last := all[len(all)-1]
	if last.Source != "nvidia-smi" || last.Device != "gpu0" || last.Unit != "W" || last.Time < from-time.Second || last.Time > to+time.Second {
		t.Errorf("sample %+v, want it between %v and %v", last, from, to)
	}
	res, err := http.Get(p.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	page, err := io.ReadAll(res.Body)
	if err != nil || !strings.Contains(string(page), `reprise_hw_gpu_power_watts{source="nvidia-smi",device="gpu0"} 250`) {
		t.Errorf("/metrics: %v\n%s", err, page)
	}
	if d := r.Devices(); len(d) != 1 || d[0].Model != "NVIDIA H100" {
		t.Errorf("Devices() = %+v", d)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := <-p.done; err != nil {
		t.Errorf("stopped by SIGTERM, the agent ended with %v", err)
	}
}

// A build without NVML, and a host without a driver, say so and serve the rest,
// and the load host is told.
func TestAgentWithoutNVML(t *testing.T) {
	sources, err := nvml.Open(nvml.Options{})
	for _, s := range sources {
		s.Close()
	}
	if err == nil {
		t.Skip("this host has NVML")
	}
	p := startAgent(t, "--listen", "127.0.0.1:0")
	want := "nvml: no driver: libnvidia-ml.so.1 cannot be opened"
	if !nvml.Built {
		want = "nvml: not built: this build has no NVML"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for ; strings.Count(p.said(), want) != 1; time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("stderr %q, want %q once in it", p.said(), want)
		}
	}
	r, err := agent.NewRemote(agent.RemoteOptions{URL: p.url})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Sample(t.Context(), clock.Now, func(gpu.Sample) {}); err != nil {
		t.Fatal(err)
	}
	if a := r.Absent(); len(a) != 1 || !strings.HasPrefix(a[0], want) {
		t.Errorf("Absent() = %q", a)
	}
	status := gpu.SourceStatus{Name: "agent", Readings: 1, Absent: r.Absent()}
	if text := status.Summary(); !strings.HasPrefix(text, "agent lacks "+want) {
		t.Errorf("the summary is %q", text)
	}
}

// An agent that is killed and started again: the run goes on, the gap is
// recorded, and new samples come.
func TestAgentDies(t *testing.T) {
	path, add := smiCSV(t)
	add(1)
	p := startAgent(t, "--listen", "127.0.0.1:0", "--gpu", "smi="+path)
	r, err := agent.NewRemote(agent.RemoteOptions{URL: p.url, Period: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []gpu.Sample
	sampler := gpu.StartSampler(gpu.SamplerConfig{Emit: func(s gpu.Sample) { mu.Lock(); defer mu.Unlock(); all = append(all, s) }}, r)
	defer sampler.Close()
	until := func(what string, is func(gpu.Sample) bool) {
		t.Helper()
		for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			if slices.ContainsFunc(all, is) {
				mu.Unlock()
				return
			}
			mu.Unlock()
			if time.Since(start) > 30*time.Second {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	until("up", func(s gpu.Sample) bool { return s.Metric == gpu.MetricUp && s.Source == "agent" && s.Value == 1 })
	add(2)
	until("2 W", func(s gpu.Sample) bool { return s.Value == 2 && s.Metric == gpu.GPUPower })
	p.cmd.Process.Kill()
	<-p.done
	until("down", func(s gpu.Sample) bool { return s.Metric == gpu.MetricUp && s.Source == "agent" && s.Value == 0 })
	startAgent(t, "--listen", strings.TrimPrefix(p.url, "http://"), "--gpu", "smi="+path)
	add(3)
	until("3 W", func(s gpu.Sample) bool { return s.Value == 3 && s.Metric == gpu.GPUPower })
	until("the gap", func(s gpu.Sample) bool { return s.IsGap() && strings.Contains(s.Note, "restarted") && s.Value > 0 })
}

// authority makes certificates that it signs.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) sign(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c, key
}

func (a *authority) client(name string) *tls.Config {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	conf := &tls.Config{RootCAs: pool}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key"))
		if err != nil {
			a.t.Fatal(err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf
}

// Mutual TLS and a token keep out who has neither, and their errors tell neither.
func TestAgentAuthentication(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	a.sign("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	a.sign("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	stranger.sign("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	const token = "a-token-of-enough-letters"
	if err := os.WriteFile(a.dir+"/token", []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	both := startAgent(t, "--listen", "127.0.0.1:0", "--gpu", "off", "--token-file", a.dir+"/token",
		"--tls-cert", a.dir+"/server.pem", "--tls-key", a.dir+"/server.key", "--client-ca", a.dir+"/ca.pem")
	right := a.client("client")
	foreign := stranger.client("client")
	foreign.RootCAs = a.client("").RootCAs
	for _, tt := range []struct {
		name  string
		o     agent.RemoteOptions
		fault string
	}{
		{"right", agent.RemoteOptions{URL: both.url, Token: token, TLS: right}, ""},
		{"wrong token", agent.RemoteOptions{URL: both.url, Token: token + "x", TLS: right}, gpu.FaultUnauthorized},
		{"no token", agent.RemoteOptions{URL: both.url, TLS: right}, gpu.FaultUnauthorized},
		{"no certificate", agent.RemoteOptions{URL: both.url, Token: token, TLS: a.client("")}, gpu.FaultUnauthorized},
		{"a certificate of others", agent.RemoteOptions{URL: both.url, Token: token, TLS: foreign}, gpu.FaultUnauthorized},
		{"an unknown server", agent.RemoteOptions{URL: both.url, Token: token, TLS: stranger.client("client")}, gpu.FaultUnauthorized},
		{"no TLS", agent.RemoteOptions{URL: strings.Replace(both.url, "https", "http", 1), Token: token}, gpu.FaultRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := agent.NewRemote(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			err = r.Sample(t.Context(), clock.Now, func(gpu.Sample) {})
			switch f := gpu.AsFault(err); {
			case tt.fault == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.fault != "" && (f == nil || f.Name != tt.fault):
				t.Errorf("Sample = %v, want %s", err, tt.fault)
			case f != nil && (strings.Contains(f.Error(), token) || strings.Contains(f.Error(), "127.0.0.1")):
				t.Errorf("error %q tells a token or an address", f.Error())
			}
		})
	}
	if said := both.said(); strings.Contains(said, token) {
		t.Errorf("the agent prints its token: %s", said)
	}
}
