package proxy

import (
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
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writePair makes a certificate with the given serial number, and its key.
func writePair(t testing.TB, dir string, serial int64) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// A certificate is replaced while it serves, by itself and on Reload; one that
// does not fit its key is not.
func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, 1)
	up := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	p := run(t, up.URL, func(o *Options) { o.Certificate, o.CertificateKey = cert, key })
	serial := func() int64 {
		t.Helper()
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get(p.url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Errorf("the client got %s, want HTTP/2", resp.Proto)
		}
		return resp.TLS.PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Fatalf("serial %d, want 1", n)
	}
	writePair(t, dir, 2)
	eventually(t, func() bool { return serial() == 2 }, "the new certificate")
	writePair(t, dir, 3)
	p.Reload()
	if n := serial(); n != 3 {
		t.Errorf("serial %d after Reload, want 3", n)
	}
	os.WriteFile(key, []byte("half a k"), 0o600)
	p.Reload()
	if n := serial(); n != 3 {
		t.Errorf("serial %d with a broken key, want 3", n)
	}
	if _, failed, _ := p.cert.stats(); failed == 0 {
		t.Error("a reload that failed was not counted")
	}
}

// An https upstream is verified, and spoken to in HTTP/2 where it can.
func TestUpstreamTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, 1)
	inner := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	secure := run(t, inner.URL, func(o *Options) { o.Certificate, o.CertificateKey = cert, key })
	pemBytes, _ := os.ReadFile(cert)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pemBytes)
	for name, tt := range map[string]struct {
		tls  *tls.Config
		want int
	}{"verified": {&tls.Config{RootCAs: pool}, 200}, "unknown authority": {nil, 502}} {
		p := run(t, secure.url, func(o *Options) { o.UpstreamTLS = tt.tls })
		resp, err := client(t).Get(p.url)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.want || strings.Contains(string(b), "127.0.0.1") {
			t.Errorf("%s: %d %q, want %d", name, resp.StatusCode, b, tt.want)
		}
	}
}

// serveActivated is this test's binary as a service that systemd started.
func serveActivated() int {
	u, err := url.Parse(os.Getenv("PROXY_TEST_UPSTREAM"))
	if err != nil {
		return 1
	}
	l, err := Activated()
	if err != nil || len(l) != 1 || os.Getenv("LISTEN_FDS") != "" {
		fmt.Fprintln(os.Stderr, "activation:", l, err)
		return 1
	}
	p, err := New(Options{Upstream: u})
	if err != nil {
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if p.Serve(ctx, l...) != nil {
		return 1
	}
	return 0
}

// The socket outlives the process: a restart refuses no connection and ends no
// stream.
func TestSocketActivation(t *testing.T) {
	hold := make(chan struct{})
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first ")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/long" {
			<-hold
		}
		io.WriteString(w, "last")
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "PROXY_TEST_UPSTREAM="+up.URL)
		cmd.ExtraFiles = []*os.File{f}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	addr := "http://" + l.Addr().String()
	get := func(path string) string {
		resp, err := client(t).Get(addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	one := start()
	resp, err := client(t).Get(addr + "/long")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	one.Process.Signal(syscall.SIGTERM)
	time.Sleep(50 * time.Millisecond)
	two := start() // a connection made in between has waited in the socket
	if got := get("/"); got != "first last" {
		t.Errorf("after the restart: %q", got)
	}
	close(hold)
	if b, err := io.ReadAll(resp.Body); string(b) != "first last" || err != nil {
		t.Errorf("the stream across the restart: %q, %v", b, err)
	}
	if err := one.Wait(); err != nil {
		t.Errorf("the old process: %v", err)
	}
	two.Process.Signal(syscall.SIGTERM)
	if err := two.Wait(); err != nil {
		t.Errorf("the new process: %v", err)
	}
}

// Two processes share the port while one drains.
func TestReusePort(t *testing.T) {
	a, err := Listen("127.0.0.1:0", true)
	if err != nil {
		t.Skip("no SO_REUSEPORT here:", err)
	}
	defer a.Close()
	b, err := Listen(a.Addr().String(), true)
	if err != nil {
		t.Fatalf("a second listener: %v", err)
	}
	b.Close()
	if c, err := Listen(a.Addr().String(), false); err == nil {
		c.Close()
		t.Error("a third one without it was taken")
	}
}
