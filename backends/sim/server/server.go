package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"reprise/backends/sim/engine"
	"reprise/internal/clock"
)

// Version is what /version answers: the vLLM whose API this is, marked as not
// being it.
const Version = "0.32.0+sim"

// A Server is one simulated engine with its API.
type Server struct {
	opts        Options // resolved
	cfg         engine.Config
	fingerprint string
	http        http.Server
	started     time.Time

	mu  sync.Mutex // guards eng and m
	eng *engine.Engine
	m   metrics

	kick chan struct{} // holds a token when the idle loop should look again
	dead chan struct{} // closed when the engine died
	die  sync.Once
	done chan struct{} // closed by Close
	shut sync.Once

	// split sends late tokens one by one: for tests that compare events on a
	// machine that may be busy.
	split bool

	listener net.Listener
	requests atomic.Uint64 // generation requests, for faults
	nonce    atomic.Uint64
}

// ErrCrashed is returned by Serve after a [Crash] fault.
var ErrCrashed = errors.New("engine core died")

// New makes a server from o, which is checked first.
func New(o Options) (*Server, error) {
	o, cfg, err := o.resolve()
	if err != nil {
		return nil, err
	}
	eng, err := engine.New(cfg)
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts: o, cfg: cfg, eng: eng, fingerprint: "sim-" + o.Preset, started: time.Now(),
		kick: make(chan struct{}, 1), dead: make(chan struct{}), done: make(chan struct{}),
	}
	s.m.init(cfg.MaxModelLen)
	s.http.Handler = s.routes()
	// No timeouts: a client may open connections long before it needs them.
	return s, nil
}

// Options returns the options with defaults filled in.
func (s *Server) Options() Options { return s.opts }

// Serve answers on l until Close, a crash of the engine, or a failure of l. It
// returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	s.listener = l
	stop := make(chan struct{})
	var loop sync.WaitGroup
	defer loop.Wait()
	alarms := make(chan *clock.Alarm, 1)
	failed := make(chan error, 1)
	loop.Go(func() {
		alarm, err := clock.NewAlarm() // belongs to the goroutine that makes it
		if err != nil {
			failed <- err
			return
		}
		defer alarm.Close()
		alarms <- alarm
		s.loop(stop, alarm)
	})
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case alarm := <-alarms:
		defer alarm.Wake()
	}
	defer close(stop)

	served := make(chan error, 1)
	go func() { served <- s.http.Serve(l) }()
	for _, f := range s.opts.Faults {
		if f.Kind == Refuse && f.After == 0 {
			s.refuse()
		}
	}
	for {
		select {
		case err := <-served:
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			if s.refusing() {
				// Connections that are open live on; only new ones fail.
				served = nil
				continue
			}
			return fmt.Errorf("serve: %w", err)
		case <-s.done:
			return nil
		case <-s.dead:
			// vLLM's API server answers what is in flight and exits within a
			// second.
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if s.http.Shutdown(ctx) != nil {
				s.http.Close()
			}
			return ErrCrashed
		}
	}
}

// Close ends Serve, hanging up on everybody.
func (s *Server) Close() error {
	s.shut.Do(func() { close(s.done) })
	return s.http.Close()
}

func (s *Server) refuse() {
	if s.listener != nil {
		s.listener.Close()
	}
}

func (s *Server) refusing() bool {
	for _, f := range s.opts.Faults {
		if f.Kind == Refuse && s.requests.Load() >= uint64(f.After) {
			return true
		}
	}
	return false
}

// crash ends the engine: every handler sees dead closed.
func (s *Server) crash() { s.die.Do(func() { close(s.dead) }) }

// maxLag is how far the engine's time may fall behind the clock before the
// difference is taken for lost. Up to it, delays are made up for, so that they
// never add up; beyond it (a suspended process) a burst would follow.
const maxLag = 250 * time.Millisecond

// loop plays the engine's passes in real time until stop is closed.
func (s *Server) loop(stop <-chan struct{}, alarm *clock.Alarm) {
	ended := func() bool {
		select {
		case <-stop:
			return true
		case <-s.dead:
			return true
		default:
			return false
		}
	}
	sleep := func(until time.Duration) {
		for clock.Now() < until && !ended() {
			alarm.SleepUntil(until)
		}
	}
	t := clock.Now()
	for !ended() {
		s.mu.Lock()
		d, ok := s.eng.Step(t)
		wake, soon := s.eng.Wake()
		s.mu.Unlock()
		switch {
		case ok:
			t += d
			if sleep(t); ended() {
				return
			}
			s.mu.Lock()
			s.deliver(s.eng.Done(t), t)
			lag := clock.Now() - t
			s.m.lag(lag)
			s.mu.Unlock()
			if lag > maxLag {
				t += lag
			}
		case soon:
			// Everything submitted from now on enters the queue later.
			t = max(t, wake)
			sleep(t)
		default:
			select {
			case <-s.kick:
			case <-stop:
			case <-s.dead:
			}
		}
	}
}

// submit hands the requests of a call to the engine.
func (s *Server) submit(c *call) error {
	s.mu.Lock()
	now := clock.Now()
	for _, r := range c.reqs {
		if err := s.eng.Submit(now, r); err != nil {
			s.mu.Unlock()
			return err
		}
	}
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
	return nil
}

// abort takes what is left of a call from the engine.
func (s *Server) abort(c *call) {
	s.mu.Lock()
	for _, r := range c.reqs {
		s.eng.Abort(r)
	}
	s.mu.Unlock()
}

// deliver hands the tokens of a pass to their calls. It is called with s.mu.
func (s *Server) deliver(events []engine.Event, now time.Duration) {
	s.m.step(events)
	for _, ev := range events {
		s.m.token(ev, now)
		o := ev.Req.Owner.(*owner)
		c := o.call
		c.mu.Lock()
		c.out = append(c.out, output{index: o.index, token: ev.Token, finish: ev.Finish})
		if ev.Finish != engine.Running {
			c.left--
			s.m.finished(ev.Req, c)
		}
		wake := c.stream || c.left == 0
		c.mu.Unlock()
		if wake {
			select {
			case c.ready <- struct{}{}:
			default:
			}
		}
	}
}

// id makes the id of a request that brings none, 16 hex digits like vLLM's.
func (s *Server) id() string {
	x := s.nonce.Add(1) * 0x9e3779b97f4a7c15
	x ^= uint64(s.started.UnixNano())
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 29
	const hex = "0000000000000000"
	h := strconv.FormatUint(x, 16)
	return hex[len(h):] + h
}
