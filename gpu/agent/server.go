package agent

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"

	"reprise/gpu"
	"reprise/internal/clock"
	"reprise/internal/wallclock"
)

// ProtocolVersion is what both ends must agree on.
const ProtocolVersion = 1

const (
	// defaultKeep is how many samples a server remembers: two minutes of eight
	// GPUs, in some 20 MB.
	defaultKeep = 131072
	// maxAnswer is the most samples of one answer.
	maxAnswer = 8192
)

// About is what a server says of itself.
type About struct {
	Version  int                `json:"version"`
	Instance string             `json:"instance"`
	Program  string             `json:"program"` // version of reprise
	Sources  []gpu.SourceStatus `json:"sources"`
	// Absent says what this server does not have, and why: "nvml: not built: …".
	Absent []string `json:"absent,omitempty"`
}

// Options of a [Server].
type Options struct {
	// Token, if it is not empty, is what clients must send.
	Token string
	// Program and Absent go to About.
	Program string
	Absent  []string
	// Now is the server's clock, internal/clock unless set.
	Now func() time.Duration
	// Keep is how many samples are remembered, 131,072 unless set.
	Keep int
}

// A Server answers for the telemetry of its host. It runs no sampler of its own:
// Add is a SamplerConfig.Emit.
type Server struct {
	o        Options
	instance string
	token    [sha256.Size]byte
	latest   gpu.Latest
	status   func() []gpu.SourceStatus

	mu    sync.Mutex
	ring  []gpu.Sample // of number n at n modulo its length
	count int64        // samples there were
}

// NewServer makes a server. status says how the sources fare; it may be nil.
func NewServer(o Options, status func() []gpu.SourceStatus) *Server {
	if o.Now == nil {
		o.Now = clock.Now
	}
	if o.Keep <= 0 {
		o.Keep = defaultKeep
	}
	if status == nil {
		status = func() []gpu.SourceStatus { return nil }
	}
	var name [8]byte
	rand.Read(name[:]) // never fails
	return &Server{o: o, instance: hex.EncodeToString(name[:]), token: sha256.Sum256([]byte(o.Token)), status: status}
}

// Add takes a sample.
func (s *Server) Add(m gpu.Sample) {
	s.latest.Add(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ring) < s.o.Keep {
		s.ring = append(s.ring, m)
	} else {
		s.ring[s.count%int64(s.o.Keep)] = m
	}
	s.count++
}

// since returns up to maxAnswer samples from number from on, the number behind
// them, and how many before them are gone.
func (s *Server) since(from int64) (samples []gpu.Sample, next, lost int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := s.count - int64(len(s.ring))
	if from < oldest {
		lost, from = oldest-from, oldest
	}
	next = min(s.count, from+maxAnswer)
	for n := from; n < next; n++ {
		samples = append(samples, s.ring[n%int64(s.o.Keep)])
	}
	return samples, next, lost
}

// Handler is the server's HTTP side.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/time", s.time)
	mux.HandleFunc("GET /v1/samples", s.samples)
	mux.HandleFunc("GET /v1/about", s.about)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.allowed(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a token is needed: Authorization: Bearer TOKEN", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// allowed compares the token in a time that says nothing of it.
func (s *Server) allowed(r *http.Request) bool {
	if s.o.Token == "" {
		return true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(sum[:], s.token[:]) == 1 && ok
}

// A timeAnswer is that of /v1/time: the clock of samples, and the time of day in
// Unix nanoseconds.
type timeAnswer struct {
	Instance    string `json:"instance"`
	Receive     int64  `json:"receive_ns"`
	ReceiveWall int64  `json:"receive_wall_ns"`
	SendWall    int64  `json:"send_wall_ns"`
	Send        int64  `json:"send_ns"`
}

func (s *Server) time(w http.ResponseWriter, r *http.Request) {
	receive, receiveWall := s.o.Now(), wallclock.Now().UnixNano()
	w.Header().Set("Content-Type", "application/json")
	// The send times are the last thing that is put in.
	fmt.Fprintf(w, `{"instance":%q,"receive_ns":%d,"receive_wall_ns":%d,"send_wall_ns":%d,"send_ns":%d}`+"\n",
		s.instance, int64(receive), receiveWall, wallclock.Now().UnixNano(), int64(s.o.Now()))
}

// A samplesHead is the first line of /v1/samples, a samplesTail the last.
type samplesHead struct {
	Version  int    `json:"version"`
	Instance string `json:"instance"`
	From     int64  `json:"from"` // number of the first sample that follows
	Lost     int64  `json:"lost"` // samples that were asked for and are gone
}

type samplesTail struct {
	End *int64 `json:"end"`
}

func (s *Server) samples(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	from := s.count
	s.mu.Unlock()
	if q := r.URL.Query().Get("from"); q != "" {
		n, err := strconv.ParseInt(q, 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "from is no number of a sample", http.StatusBadRequest)
			return
		}
		// Numbers of another instance may be higher than ours.
		from = min(n, from)
	}
	samples, next, lost := s.since(from)
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	if enc.Encode(samplesHead{ProtocolVersion, s.instance, next - int64(len(samples)), lost}) != nil {
		return
	}
	for i := range samples {
		if enc.Encode(samples[i]) != nil {
			return
		}
	}
	enc.Encode(samplesTail{&next})
}

func (s *Server) about(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(About{ProtocolVersion, s.instance, s.o.Program, s.status(), s.o.Absent})
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	w.Header().Set("Content-Type", string(format))
	enc := expfmt.NewEncoder(w, format)
	for _, f := range gpu.Families(s.latest.All()) {
		if enc.Encode(f) != nil {
			return
		}
	}
}

// HTTP is a server for h whose clients cannot hold it up.
func HTTP(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// Listen listens at addr for at most conns connections at a time. Where addr is
// not a loopback address, open must say that clients are asked who they are or
// that the caller knows what it does.
func Listen(addr string, conns int, open bool) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%q is not host:port", addr)
	}
	if !open && !Loopback(host) {
		return nil, ErrOpen
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &limited{Listener: l, room: make(chan struct{}, conns)}, nil
}

// Loopback says whether host is this machine alone.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ErrOpen is the error of Listen at an address that others reach.
var ErrOpen = fmt.Errorf("others than this machine reach that address, and nothing asks them who they are")

// limited takes as many connections as there is room for; others wait in the
// kernel's queue.
type limited struct {
	net.Listener
	room chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
