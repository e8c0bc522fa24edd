package proxy

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

type (
	counter = atomic.Int64
	gauge   = atomic.Int64
)

// Why an exchange with the upstream failed.
const (
	errorConnect = iota
	errorConnectTimeout
	errorTimeout
	errorReset
	errorMalformed
	upstreamErrors
)

var upstreamErrorNames = [upstreamErrors]string{"connect", "connect_timeout", "timeout", "reset", "malformed"}

// meters are the counts of a proxy.
type meters struct {
	requests, streams, aborts, retries, bodyBytes counter
	accepted, connections, limited                counter
	tlsErrors, panics                             counter
	statuses                                      [6]counter
	upstreamErrors                                [upstreamErrors]counter
}

func (m *meters) status(code int) { m.statuses[min(code/100, 5)].Add(1) }

// Admin serves /healthz and /metrics, which belong on a port of their own.
func (p *Proxy) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if p.draining.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write([]byte("draining\n"))
			return
		}
		w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(p.metrics())
	})
	return mux
}

// An exposition is text in the format of Prometheus.
type exposition struct{ bytes.Buffer }

func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (e *exposition) sample(name, labels string, v float64) {
	e.WriteString(name)
	if labels != "" {
		e.WriteString("{" + labels + "}")
	}
	e.WriteString(" " + strconv.FormatFloat(v, 'g', -1, 64) + "\n")
}

func (e *exposition) one(name, kind, help string, v int64) {
	e.family(name, kind, help)
	e.sample(name, "", float64(v))
}

func (p *Proxy) metrics() []byte {
	e, m := new(exposition), &p.m
	e.one("capture_proxy_requests_total", "counter", "Requests taken from clients.", m.requests.Load())
	e.one("capture_proxy_streams", "gauge", "Requests under way.", m.streams.Load())
	e.family("capture_proxy_responses_total", "counter", "Answers begun, by class of status.")
	for class := 1; class < len(m.statuses); class++ {
		e.sample("capture_proxy_responses_total", fmt.Sprintf(`code="%dxx"`, class), float64(m.statuses[class].Load()))
	}
	e.one("capture_proxy_response_body_bytes_total", "counter", "Bytes of answers' bodies passed on.", m.bodyBytes.Load())
	e.one("capture_proxy_client_aborts_total", "counter", "Requests whose client hung up.", m.aborts.Load())
	e.family("capture_proxy_upstream_errors_total", "counter", "Requests that the upstream failed.")
	for i := range m.upstreamErrors {
		e.sample("capture_proxy_upstream_errors_total", `reason="`+upstreamErrorNames[i]+`"`, float64(m.upstreamErrors[i].Load()))
	}
	e.one("capture_proxy_upstream_retries_total", "counter", "Requests sent again after the upstream had closed an idle connection.", m.retries.Load())
	if p.up != nil {
		e.one("capture_proxy_upstream_connections", "gauge", "Open connections to the upstream.", p.up.open.Load())
	}
	e.one("capture_proxy_connections", "gauge", "Open client connections.", m.connections.Load())
	e.one("capture_proxy_connections_max", "gauge", "Bound on open client connections.", int64(p.o.MaxConnections))
	e.one("capture_proxy_connections_total", "counter", "Client connections accepted.", m.accepted.Load())
	e.one("capture_proxy_connections_limited_total", "counter", "Times that a connection had to wait for the bound.", m.limited.Load())
	e.one("capture_proxy_tunnels", "gauge", "Connections that switched protocols.", int64(p.tunnels.len()))
	e.one("capture_proxy_tls_handshake_errors_total", "counter", "TLS handshakes that failed.", m.tlsErrors.Load())
	e.one("capture_proxy_panics_total", "counter", "Faults of this program while it passed a request on.", m.panics.Load())
	if p.cert != nil {
		loads, failed, expires := p.cert.stats()
		e.family("capture_proxy_certificate_loads_total", "counter", "Times that the certificate was read.")
		e.sample("capture_proxy_certificate_loads_total", `result="ok"`, float64(loads))
		e.sample("capture_proxy_certificate_loads_total", `result="error"`, float64(failed))
		e.one("capture_proxy_certificate_expiry_timestamp_seconds", "gauge", "End of the certificate's validity.", expires.Unix())
	}
	if p.rec != nil {
		p.rec.metrics(e)
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	e.one("process_start_time_seconds", "gauge", "Start of this process.", p.clock.wall/int64(time.Second))
	e.one("go_goroutines", "gauge", "Goroutines.", int64(runtime.NumGoroutine()))
	e.one("go_memstats_sys_bytes", "gauge", "Memory taken from the system.", int64(mem.Sys-mem.HeapReleased))
	return e.Bytes()
}

func (c *recording) metrics(e *exposition) {
	a, off := c.accounts()
	e.family("capture_recording", "gauge", "1 while traffic is recorded; the label says why it is not.")
	if off == "" {
		e.sample("capture_recording", "", 1)
	} else {
		e.sample("capture_recording", `reason="`+off+`"`, 0)
	}
	e.family("capture_recording_faults_total", "counter", "Times that recording was switched off.")
	for i, name := range faultNames {
		e.sample("capture_recording_faults_total", `reason="`+name+`"`, float64(c.faults[i].Load()))
	}
	e.one("capture_exchanges_seen_total", "counter", "Exchanges that recording has accounted for.", a.Seen)
	e.one("capture_exchanges_recorded_total", "counter", "Exchanges recorded.", a.Recorded)
	e.family("capture_exchanges_dropped_total", "counter", "Exchanges seen and not recorded.")
	for _, reason := range slices.Sorted(maps.Keys(a.Reasons)) {
		e.sample("capture_exchanges_dropped_total", `reason="`+reason+`"`, float64(a.Reasons[reason]))
	}
	e.one("capture_exchanges_open", "gauge", "Exchanges that the recorder has begun.", a.Open)
	e.one("capture_queue_batches", "gauge", "Batches on their way to the recorder.", int64(c.queued()))
	e.one("capture_queue_bytes", "gauge", "Memory of batches.", c.held.Load())
	e.one("capture_queue_bytes_max", "gauge", "Bound on the memory of batches.", c.o.QueueMemory)
	e.one("capture_files_total", "counter", "Files finished.", c.files.Load())
}
