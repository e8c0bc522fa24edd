package html

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"reprise/internal/metrics"
	iunits "reprise/internal/units"
	"reprise/report"
	"reprise/traceformat"
)

// Bounds of what a Server looks at.
const (
	maxRuns    = 500
	maxEntries = 100_000 // files and folders
	maxDepth   = 8
)

// A Server shows the runs under a folder and compares any two of them, to
// browsers on hosts that it trusts: it answers whoever reaches it. It reads and
// never writes, and only runs that it has found itself: a name in a request is
// looked up among them and opens nothing else. It computes one page at a time.
type Server struct {
	root string
	turn chan struct{} // holds one token: the right to compute
}

// NewServer serves the runs under root.
func NewServer(root string) (*Server, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is no folder", root)
	}
	s := &Server{root: root, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s, nil
}

// found is a run below the root.
type found struct {
	name     string // relative, with slashes
	manifest *report.Manifest
	err      error
}

// runs looks for run directories. Links are not followed. more says that there
// are more than are listed.
func (s *Server) runs(ctx context.Context) (all []found, more bool, err error) {
	entries := 0
	err = filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if entries++; entries > maxEntries || len(all) >= maxRuns {
			more = true
			return fs.SkipAll
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && path == s.root:
			return err
		case err != nil:
			return nil // one folder that cannot be read is no reason to show none
		}
		rel, err := filepath.Rel(s.root, path)
		if err != nil {
			return nil
		}
		if d.IsDir() {
			if strings.Count(rel, string(filepath.Separator)) >= maxDepth || rel != "." && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		if d.Name() != "run.json" || !d.Type().IsRegular() {
			return nil
		}
		dir := filepath.Dir(path)
		if rows, err := os.Lstat(filepath.Join(dir, "trace.parquet")); err == nil && !rows.Mode().IsRegular() {
			return nil // a link may lead out of the folder
		}
		m, err := report.ReadManifest(dir)
		all = append(all, found{filepath.ToSlash(filepath.Dir(rel)), m, err})
		return fs.SkipDir
	})
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.name, b.name) })
	return all, more, err
}

// open is the directory of a run that is found under its name.
func (s *Server) open(all []found, name string) (dir string, ok bool) {
	for i := range all {
		if all[i].name == name && all[i].err == nil {
			return filepath.Join(s.root, filepath.FromSlash(name)), true
		}
	}
	return "", false
}

// trusted says whether a Host header names an address, or this machine: a name
// that anyone can point at this server (DNS rebinding) is not one.
func trusted(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// ServeHTTP answers GET and HEAD of /, /run?dir= and /compare?a=&b=.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	for k, v := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
		"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
	} {
		h.Set(k, v)
	}
	switch {
	case !trusted(r.Host):
		http.Error(w, "this server answers to localhost and to addresses", http.StatusMisdirectedRequest)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "this server only shows", http.StatusMethodNotAllowed)
		return
	case r.URL.Path == "/favicon.ico":
		w.WriteHeader(http.StatusNoContent)
		return
	}
	ctx := r.Context()
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return
	}
	var b bytes.Buffer
	policy := Policy
	var err error
	all, more, err := s.runs(ctx)
	if err != nil {
		http.Error(w, "the folder cannot be read", http.StatusInternalServerError)
		return
	}
	q := r.URL.Query()
	switch r.URL.Path {
	case "/":
		policy = listPolicy
		err = writeList(&b, all, more)
	case "/run":
		dir, ok := s.open(all, q.Get("dir"))
		if !ok {
			http.Error(w, "no such run", http.StatusNotFound)
			return
		}
		err = s.run(ctx, &b, dir, q.Get("dir"))
	case "/compare":
		a, okA := s.open(all, q.Get("a"))
		c, okB := s.open(all, q.Get("b"))
		if !okA || !okB {
			http.Error(w, "choose a run for A and one for B", http.StatusNotFound)
			return
		}
		err = s.compare(ctx, &b, [2]string{a, c}, [2]string{q.Get("a"), q.Get("b")})
	default:
		http.Error(w, "no such page", http.StatusNotFound)
		return
	}
	if err != nil {
		if ctx.Err() == nil {
			// Plain text: what it says may come from a file.
			http.Error(w, strings.ReplaceAll(err.Error(), s.root+string(filepath.Separator), ""), http.StatusUnprocessableEntity)
		}
		return
	}
	h.Set("Content-Security-Policy", policy+"; frame-ancestors 'none'")
	h.Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.Copy(w, &b) // whoever has gone needs no answer
}

func (s *Server) run(ctx context.Context, w io.Writer, dir, name string) error {
	a, err := report.Analyse(ctx, dir, report.Config{})
	if err != nil {
		return err
	}
	a.Name = name
	return WriteRun(w, a)
}

func (s *Server) compare(ctx context.Context, w io.Writer, dirs, names [2]string) error {
	if names[0] == names[1] {
		names[0], names[1] = names[0]+" (A)", names[1]+" (B)"
	}
	c, err := report.Compare(ctx, report.Side{Name: names[0], Runs: dirs[:1]}, report.Side{Name: names[1], Runs: dirs[1:]}, report.CompareConfig{Seed: 1})
	if err != nil {
		return err
	}
	ps, err := report.Profiles(ctx, dirs[:], report.Config{})
	if err != nil {
		return err
	}
	c.A.Runs[0].Name, c.B.Runs[0].Name = names[0], names[1]
	return WriteComparison(w, c, nil, [2]*report.Profile{ps[0], ps[1]})
}

// listPolicy lets the list send its form to the server that it came from.
var listPolicy = strings.Replace(Policy, "form-action 'none'", "form-action 'self'", 1)

// writeList writes the page of all runs.
func writeList(w io.Writer, all []found, more bool) error {
	p := &page{Eyebrow: "Reprise · runs", Title: "Runs", policy: listPolicy, Foot: "Served by report serve, which reads and never writes."}
	t := &table{Caption: "Runs under this folder", Head: []string{"run", "A", "B", "started", "backend", "trace", "requests", "ok", "TTFT p50", "TTFT p99", "output tokens/s", "plan", "verdict"}, Sorted: true}
	for i := range all {
		f := &all[i]
		if f.err != nil {
			p.Cautions = append(p.Cautions, f.name+": its run.json cannot be read")
			continue
		}
		m := f.manifest
		started := text("-")
		if m.Stats != nil && !m.Stats.StartedAt.IsZero() {
			at := m.Stats.StartedAt.UTC()
			started = cell{Text: at.Format("2006-01-02 15:04:05"), Sort: fmt.Sprint(at.Unix())}
		}
		row := []cell{
			{Text: f.name, Link: "run?" + url.Values{"dir": {f.name}}.Encode()},
			{Pick: &pick{"a", f.name, f.name + " as A", len(t.Rows) == 0}}, {Pick: &pick{"b", f.name, f.name + " as B", len(t.Rows) == 1}},
			started, text(m.Server.Backend), text(m.Trace.Name),
		}
		if s := m.Summary; s != nil {
			row = append(row, count(s.Requests.Measured), count(s.Requests.OK))
			for _, v := range []traceformat.Opt[metrics.Nanos]{s.TTFT.Schedule.P50, s.TTFT.Schedule.P99} {
				if v.OK {
					row = append(row, cell{Text: v.V.String(), Sort: float(float64(v.V))})
				} else {
					row = append(row, text("-"))
				}
			}
			row = append(row, cell{Text: iunits.Digits(s.Rates.OutputTokens), Sort: float(s.Rates.OutputTokens)})
		} else {
			row = append(row, text("-"), text("-"), text("-"), text("-"), text("-"))
		}
		verdict := cell{Text: m.State, Chip: "plain"}
		if m.Summary != nil && m.State == report.StateComplete {
			verdict = cell{Text: m.Summary.Fidelity.Verdict, Chip: map[string]string{metrics.Valid: "good", metrics.Invalid: "bad"}[m.Summary.Fidelity.Verdict]}
			if verdict.Chip == "" {
				verdict.Chip = "plain"
			}
		}
		t.Rows = append(t.Rows, append(row, text(fmt.Sprintf("%.8s", m.Plan.Digest)), verdict))
	}
	if more {
		p.Cautions = append(p.Cautions, fmt.Sprintf("There are more than %d runs or %s files: the rest is not listed.", maxRuns, iunits.Count(maxEntries)))
	}
	s := section{ID: "summary", Title: "Choose two and compare them", Text: []string{"Runs of one plan were sent the same requests: those compare request by request."}, Blocks: []block{{Table: t}}, Compare: "Compare A with B"}
	if len(t.Rows) == 0 {
		s = section{ID: "summary", Title: "No runs", Text: []string{"There is no run.json under this folder: replay TRACE -o DIR writes one."}}
	}
	p.Sections = []section{s}
	return p.write(w)
}
