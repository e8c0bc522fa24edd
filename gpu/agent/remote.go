package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"reprise/gpu"
	"reprise/internal/wallclock"
)

const (
	// DefaultPeriod is how often a Remote asks; samples wait at the agent.
	DefaultPeriod = 500 * time.Millisecond
	// firstExchanges and laterExchanges are made of a reading: many to begin
	// with, and enough afterwards for one of them to be quick.
	firstExchanges = 16
	laterExchanges = 3
	// aboutEvery is how often sources and devices are asked for.
	aboutEvery = 10 * time.Second
	// maxBody bounds an answer, and maxLine a line of it.
	maxBody = 16 << 20
	maxLine = 64 << 10
)

// RemoteOptions are those of [NewRemote].
type RemoteOptions struct {
	// Name is the source's, "agent" unless set.
	Name string
	// URL is http://host:port or https://host:port.
	URL string
	// Token is sent where it is not empty.
	Token string
	// TLS has authorities and certificates for https.
	TLS *tls.Config
	// Period is DefaultPeriod unless set.
	Period time.Duration
	// Dial, if it is not nil, opens connections.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// A Remote is the telemetry of an agent, with times on the run's clock. It
// implements gpu.Source, gpu.Describer and gpu.Accountant.
type Remote struct {
	o      RemoteOptions
	base   string
	client *http.Client

	instance string        // of the server that samples came from
	next     int64         // number of the sample that comes next
	last     time.Duration // time of the last sample
	clocks   Clocks
	clocked  string // instance that clocks is of
	// restarted says that the next samples are the first of a new process.
	restarted bool
	told      time.Duration // when the offset was last emitted
	asked     time.Duration // when About was last asked for

	mu    sync.Mutex
	about About
}

// NewRemote makes a source of the agent at o.URL, which is asked for nothing yet.
func NewRemote(o RemoteOptions) (*Remote, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("the address of an agent is http://host:port or https://host:port")
	}
	if o.Name == "" {
		o.Name = "agent"
	}
	if o.Period == 0 {
		o.Period = DefaultPeriod
	}
	t := &http.Transport{
		TLSClientConfig: o.TLS, MaxIdleConns: 2, IdleConnTimeout: time.Minute, DisableCompression: true,
		TLSHandshakeTimeout: 5 * time.Second, MaxResponseHeaderBytes: 16 << 10,
	}
	if o.Dial != nil {
		t.DialContext = o.Dial
	}
	return &Remote{o: o, base: u.Scheme + "://" + u.Host, client: &http.Client{
		Transport: t,
		// A token is for this server and no other.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Name implements gpu.Source.
func (r *Remote) Name() string { return r.o.Name }

// Period implements gpu.Source.
func (r *Remote) Period() time.Duration { return r.o.Period }

// AccountsGaps implements gpu.Accountant: a reading that fails loses nothing,
// because the agent keeps its samples.
func (r *Remote) AccountsGaps() {}

// Close implements gpu.Source.
func (r *Remote) Close() error {
	r.client.CloseIdleConnections()
	return nil
}

// Devices implements gpu.Describer.
func (r *Remote) Devices() (all []gpu.Device) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.about.Sources {
		all = append(all, s.Devices...)
	}
	return all
}

// Absent implements gpu.Lacker: what the agent does not have, and what it has and
// never could read.
func (r *Remote) Absent() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.about.Absent)
	for _, s := range r.about.Sources {
		if s.Readings == 0 && s.Error != "" {
			all = append(all, s.Name+": "+s.Error)
		}
	}
	return all
}

// About is what the agent last said of itself.
func (r *Remote) About() About {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.about
}

// Offset is the agent's clock minus the run's as measured, and a bound on the
// error. It is to be called where Sample is.
func (r *Remote) Offset(now time.Duration) (offset, bound time.Duration, ok bool) {
	return r.clocks.Offset(now)
}

// Sample implements gpu.Source.
func (r *Remote) Sample(ctx context.Context, now func() time.Duration, emit func(gpu.Sample)) error {
	if err := r.measure(ctx, now); err != nil {
		return err
	}
	at := now()
	offset, bound, ok := r.clocks.Offset(at)
	if !ok {
		return gpu.Faultf(gpu.FaultNotMetrics, "its clock makes no sense")
	}
	if at-r.told >= time.Second || r.told == 0 {
		r.told = at
		emit(gpu.Sample{Time: at, Metric: gpu.MetricClockOffset, Value: offset.Seconds()})
		emit(gpu.Sample{Time: at, Metric: gpu.MetricClockError, Value: bound.Seconds()})
		emit(gpu.Sample{Time: at, Metric: gpu.MetricRTT, Value: r.clocks.RTT().Seconds()})
		if rate, ok := r.clocks.Drift(); ok {
			emit(gpu.Sample{Time: at, Metric: gpu.MetricClockDrift, Value: rate})
		}
	}
	if err := r.samples(ctx, offset, now, emit); err != nil {
		return err
	}
	if r.asked == 0 || at-r.asked >= aboutEvery {
		r.asked = at
		return r.askAbout(ctx)
	}
	return nil
}

// measure exchanges times with the agent.
func (r *Remote) measure(ctx context.Context, now func() time.Duration) error {
	n := laterExchanges
	if len(r.clocks.kept) == 0 {
		n = firstExchanges
	}
	for ; n > 0; n-- {
		a, x, err := r.exchange(ctx, now)
		if err != nil {
			return err
		}
		if a.Instance != r.clocked {
			// Another process, perhaps on another host with another clock.
			r.clocks, r.clocked = Clocks{}, a.Instance
			n = firstExchanges
		}
		x.T1, x.T2 = time.Duration(a.Receive), time.Duration(a.Send)
		r.clocks.Add(x)
	}
	return nil
}

// WallClock compares this machine's time of day with that of the agent's host.
func (r *Remote) WallClock(ctx context.Context) (wallclock.Check, error) {
	var clocks Clocks
	now := func() time.Duration { return time.Duration(wallclock.Now().UnixNano()) }
	for range firstExchanges {
		a, x, err := r.exchange(ctx, now)
		if err != nil {
			return wallclock.Check{}, err
		}
		if a.SendWall == 0 {
			return wallclock.Check{}, gpu.Faultf(gpu.FaultRefused, "the agent does not tell the time of day: use the same release at both ends")
		}
		x.T1, x.T2 = time.Duration(a.ReceiveWall), time.Duration(a.SendWall)
		clocks.Add(x)
	}
	offset, bound, ok := clocks.Offset(now())
	if !ok {
		return wallclock.Check{}, gpu.Faultf(gpu.FaultNotMetrics, "its clock makes no sense")
	}
	return wallclock.Check{Reference: r.base, Offset: offset, Bound: bound}, nil
}

// exchange asks for the time once. The caller sets T1 and T2 of x by the clock
// that now is.
func (r *Remote) exchange(ctx context.Context, now func() time.Duration) (a timeAnswer, x Exchange, err error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// After the connection is there and before the question is written.
		GotConn:              func(httptrace.GotConnInfo) { x.T0 = now() },
		GotFirstResponseByte: func() { x.T3 = now() },
	})
	body, err := r.get(ctx, "/v1/time", "")
	if err != nil {
		return a, x, err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxLine)).Decode(&a); err != nil || a.Instance == "" {
		return a, x, gpu.Faultf(gpu.FaultNotMetrics, "that is no agent of this program")
	}
	io.Copy(io.Discard, io.LimitReader(body, maxLine)) // so that the connection is used again
	return a, x, nil
}

// samples fetches what the agent has gathered since the last time. What is more
// than an answer holds comes with the next reading.
func (r *Remote) samples(ctx context.Context, offset time.Duration, now func() time.Duration, emit func(gpu.Sample)) error {
	query := ""
	if r.instance != "" {
		query = fmt.Sprintf("from=%d", r.next)
	}
	body, err := r.get(ctx, "/v1/samples", query)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(io.LimitReader(body, maxBody))
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	var head samplesHead
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &head) != nil || head.Instance == "" || head.From < 0 {
		return gpu.Faultf(gpu.FaultNotMetrics, "that is no agent of this program")
	}
	if head.Version != ProtocolVersion {
		return gpu.Faultf(gpu.FaultRefused, "the agent speaks version %d, this program %d: use the same release at both ends", head.Version, ProtocolVersion)
	}
	why := ""
	switch {
	case r.instance == "":
		r.instance, r.last = head.Instance, now()
	case r.instance != head.Instance:
		// The samples of the new process begin at 0. The gap ends with the first
		// of them, which the next reading gets.
		r.instance, r.next, r.restarted = head.Instance, 0, true
		return nil
	case r.restarted:
		r.restarted = false
		why = gpu.Faultf(gpu.FaultRestarted, "the agent began anew").Error()
	case head.Lost > 0:
		why = gpu.Faultf(gpu.FaultLost, "%d samples waited too long at the agent", head.Lost).Error()
	}
	r.next = head.From
	for lines.Scan() {
		var m gpu.Sample
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			var tail samplesTail
			if json.Unmarshal(lines.Bytes(), &tail) == nil && tail.End != nil {
				r.restarted = why != "" // no sample yet that the gap could end with
				return nil
			}
			return gpu.Faultf(gpu.FaultNotMetrics, "a line of the agent's is no sample")
		}
		m.Time -= offset
		if why != "" && m.Time > r.last {
			emit(gpu.Sample{Time: m.Time, Metric: gpu.MetricGap, Value: (m.Time - r.last).Seconds(), Note: why})
		}
		why = ""
		r.last = max(r.last, m.Time)
		r.next++
		emit(m)
	}
	r.restarted = why != ""
	if err := lines.Err(); err != nil {
		return err
	}
	return &gpu.Fault{Name: gpu.FaultCutShort}
}

func (r *Remote) askAbout(ctx context.Context) error {
	body, err := r.get(ctx, "/v1/about", "")
	if err != nil {
		return err
	}
	defer body.Close()
	var a About
	if err := json.NewDecoder(io.LimitReader(body, maxBody)).Decode(&a); err != nil {
		return gpu.Faultf(gpu.FaultNotMetrics, "what the agent says of itself is not readable")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.about = a
	return nil
}

// get asks the agent; the caller closes the body.
func (r *Remote) get(ctx context.Context, path, query string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", r.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.URL.RawQuery = query
	if r.o.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.o.Token)
	}
	res, err := r.client.Do(req)
	if err != nil {
		return nil, gpu.AsFault(err)
	}
	switch res.StatusCode {
	case http.StatusOK:
		return res.Body, nil
	case http.StatusUnauthorized, http.StatusForbidden:
		err = gpu.Faultf(gpu.FaultUnauthorized, "the agent wants another token or certificate: --agent-token-file, --agent-cert")
	case http.StatusBadRequest: // what TLS servers answer to those who do without
		err = gpu.Faultf(gpu.FaultRefused, "the agent answers 400: https:// in place of http://?")
	default:
		err = gpu.Faultf(gpu.FaultRefused, "the agent answers %d", res.StatusCode)
	}
	res.Body.Close()
	return nil, err
}
