package launch

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Defaults of a Spec. Loading the weights of a large model takes minutes.
const (
	DefaultReadyTimeout = 15 * time.Minute
	DefaultStopTimeout  = 30 * time.Second
	DefaultExpected     = time.Minute
)

// A Spec says how one engine is started and ended.
type Spec struct {
	Backend string   `json:"backend"` // the kind of backend, which decides what says that it is ready
	Command []string `json:"command"`
	// Env is set on top of this process's environment. Files of an experiment hold
	// it: keys belong into the environment of the process.
	Env map[string]string `json:"env,omitempty"`
	Dir string            `json:"dir,omitempty"` // where it is started; empty: here
	URL string            `json:"url"`
	// Ready are paths that must answer with 200, one after the other.
	Ready []string `json:"ready"`
	// Stop is run before the engine is signalled: what ends a container, or a
	// process on another host.
	Stop         []string      `json:"stop,omitempty"`
	ReadyTimeout time.Duration `json:"ready_timeout_ns"`
	StopTimeout  time.Duration `json:"stop_timeout_ns"` // from asking it to end to making it
	Expected     time.Duration `json:"expected_ns"`     // until it is ready, for the plan
}

// readyPaths say of each kind of backend what answers once it can generate.
// SGLang's /health_generate runs a token; its /health does too, and takes a
// second, on some releases before the scheduler is there.
var readyPaths = map[string][]string{
	"vllm":   {"/health", "/v1/models"},
	"sglang": {"/model_info", "/health_generate"},
	"openai": {"/v1/models"},
	"sim":    {"/health"},
}

// setDefaults fills in what was left out.
func (s *Spec) setDefaults() {
	if len(s.Ready) == 0 {
		s.Ready = readyPaths[s.Backend]
	}
	s.ReadyTimeout = cmp.Or(s.ReadyTimeout, DefaultReadyTimeout)
	s.StopTimeout = cmp.Or(s.StopTimeout, DefaultStopTimeout)
	s.Expected = cmp.Or(s.Expected, DefaultExpected)
}

// Same says whether an engine of s will do where one of t is asked for.
func (s *Spec) Same(t *Spec) bool {
	if len(s.Env) != len(t.Env) {
		return false
	}
	for k, v := range s.Env {
		if w, ok := t.Env[k]; !ok || v != w {
			return false
		}
	}
	return s.Backend == t.Backend && s.URL == t.URL && s.Dir == t.Dir && slices.Equal(s.Command, t.Command) && slices.Equal(s.Stop, t.Stop)
}

// Check reports what can be known to be wrong before the start: an executable
// that is not there, an address that cannot be.
func (s *Spec) Check() error {
	var errs []error
	if len(s.Command) == 0 {
		return errors.New("no command")
	}
	for _, argv := range [][]string{s.Command, s.Stop} {
		if len(argv) == 0 {
			continue
		}
		if _, err := lookPath(argv[0], s.Dir); err != nil {
			errs = append(errs, err)
		}
	}
	if _, err := s.address(); err != nil {
		errs = append(errs, err)
	}
	if s.Dir != "" {
		if i, err := os.Stat(s.Dir); err != nil || !i.IsDir() {
			errs = append(errs, fmt.Errorf("dir %s is not a directory", s.Dir))
		}
	}
	return errors.Join(errs...)
}

// lookPath finds an executable as the keeper will.
func lookPath(name, dir string) (string, error) {
	if dir != "" && strings.Contains(name, "/") && !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if e, ok := errors.AsType[*exec.Error](err); ok {
			err = e.Err
		}
		return "", fmt.Errorf("executable %s: %w", name, err)
	}
	return filepath.Abs(path)
}

// address is host:port of the engine.
func (s *Spec) address() (string, error) {
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return "", fmt.Errorf("url %q: want http://host:port", s.URL)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// Listening says whether something answers at the engine's address.
func (s *Spec) Listening() bool {
	addr, err := s.address()
	if err != nil {
		return false
	}
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
