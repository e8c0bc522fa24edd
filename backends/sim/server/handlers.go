package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"reprise/backends/sim/engine"
	"reprise/internal/llmapi"
)

func (s *Server) routes() http.Handler {
	type route struct {
		method  string
		handler http.HandlerFunc
	}
	routes := map[string]route{
		"/v1/completions":      {"POST", func(w http.ResponseWriter, r *http.Request) { s.generate(w, r, false) }},
		"/v1/chat/completions": {"POST", func(w http.ResponseWriter, r *http.Request) { s.generate(w, r, true) }},
		"/v1/models":           {"GET", s.models},
		"/tokenize":            {"POST", s.tokenize},
		"/detokenize":          {"POST", s.detokenize},
		"/health":              {"GET", s.health},
		"/ping":                {"GET", s.health},
		"/version":             {"GET", s.version},
		"/load":                {"GET", s.load},
		"/metrics":             {"GET", s.metricsPage},
		"/server_info":         {"GET", s.serverInfo},
		"/reset_prefix_cache":  {"POST", s.resetPrefixCache},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		if id := r.Header.Get("X-Request-Id"); id != "" {
			w.Header().Set("X-Request-Id", id)
		}
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		handler := "none"
		defer func() {
			s.mu.Lock()
			s.m.http(handler, r.Method, sw.status, time.Since(begin))
			s.mu.Unlock()
		}()
		rt, ok := routes[r.URL.Path]
		switch {
		case !ok:
			writeJSON(sw, http.StatusNotFound, []byte(`{"detail":"Not Found"}`))
		case rt.method != r.Method:
			handler = r.URL.Path
			w.Header().Set("Allow", rt.method)
			writeJSON(sw, http.StatusMethodNotAllowed, []byte(`{"detail":"Method Not Allowed"}`))
		default:
			handler = r.URL.Path
			rt.handler(sw, r)
		}
	})
}

// A statusWriter remembers the status for the metrics.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// readBody reads a request whole. It answers by itself if that fails.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		return data, true
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		statusError(http.StatusRequestEntityTooLarge).write(w)
	}
	return nil, false // otherwise the client is gone
}

// generate answers completions and chat.
func (s *Server) generate(w http.ResponseWriter, r *http.Request, chat bool) {
	nth := s.requests.Add(1)
	if s.refusing() {
		s.refuse()
	}
	data, ok := readBody(w, r)
	if !ok {
		return
	}
	fault := s.faultFor(nth)
	if fault != nil && fault.Kind == Status {
		statusError(fault.Status).write(w)
		return
	}
	c, fail := s.parse(data, chat, r.Header.Get("X-Request-Id"))
	if fail != nil {
		fail.write(w)
		return
	}
	select {
	case <-s.dead:
		s.answerDead(w)
		return
	default:
	}
	c.fault = fault
	if err := s.submit(c); err != nil {
		badRequest(err.Error()).write(w)
		return
	}
	if c.stream {
		s.stream(w, r, c)
	} else {
		s.collect(w, r, c)
	}
}

func (s *Server) answerDead(w http.ResponseWriter) {
	(&apiError{status: http.StatusInternalServerError, kind: "InternalServerError", message: engineDead}).write(w)
}

// stream sends events as tokens come.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, c *call) {
	defer s.abort(c) // of no effect on what has ended
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	if flush() != nil { // the head goes out before the first token
		return
	}
	f := newFormatter(s, c)
	var out []output
	var buf []byte
	for {
		select {
		case <-c.ready:
		case <-r.Context().Done():
			return
		case <-s.dead:
			w.Write([]byte(deadEvent + doneEvent))
			return
		}
		var ended bool
		out, ended = c.take(out)
		fails := c.fault != nil && c.fault.Kind != HalfUTF8 && f.total+len(out) >= c.fault.After
		if fails {
			out = out[:c.fault.After-f.total]
		}
		buf = f.events(buf[:0], out)
		if ended && !fails {
			buf = f.end(buf)
		}
		if _, err := w.Write(buf); err != nil {
			return
		}
		if fails {
			s.fail(w, r, c.fault)
			return
		}
		if flush() != nil || ended {
			return
		}
	}
}

// fail carries out a fault in mid-stream.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f *Fault) {
	rc := http.NewResponseController(w)
	rc.Flush()
	switch f.Kind {
	case Stall:
		select {
		case <-r.Context().Done():
		case <-s.dead:
		}
	case Die:
		panic(http.ErrAbortHandler)
	case Truncate:
		conn, bw, err := rc.Hijack()
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		bw.WriteString("100\r\ndata: {\"id\":\"cmpl-")
		bw.Flush()
		conn.Close()
	case ErrorEvent:
		w.Write([]byte(deadEvent + doneEvent))
	case Crash:
		s.crash()
		w.Write([]byte(deadEvent + doneEvent))
	case Exit:
		os.Stderr.WriteString("sim: exit fault\n")
		os.Exit(1)
	}
}

// collect waits for the whole answer.
func (s *Server) collect(w http.ResponseWriter, r *http.Request, c *call) {
	defer s.abort(c)
	for {
		select {
		case <-c.ready:
		case <-r.Context().Done():
			return
		case <-s.dead:
			s.answerDead(w)
			return
		}
		c.mu.Lock()
		ended := c.left == 0
		c.mu.Unlock()
		if ended {
			break
		}
	}
	if c.fault != nil && c.fault.Kind != HalfUTF8 {
		switch c.fault.Kind {
		case ErrorEvent, Crash:
			if c.fault.Kind == Crash {
				s.crash()
			}
			s.answerDead(w)
		case Truncate:
			w.Header().Set("Content-Length", "4096")
			w.Write([]byte(`{"id":"cmpl-`))
			panic(http.ErrAbortHandler)
		default:
			s.fail(w, r, c.fault)
		}
		return
	}
	out, _ := c.take(nil)
	writeJSON(w, http.StatusOK, newFormatter(s, c).whole(out))
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-s.dead:
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
	}
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, []byte(`{"version":"`+Version+`"}`))
}

func (s *Server) load(w http.ResponseWriter, _ *http.Request) {
	// As vLLM without --enable-server-load-tracking.
	writeJSON(w, http.StatusOK, []byte(`{"server_load":0}`))
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	b := []byte(`{"object":"list","data":[{"id":`)
	b = llmapi.AppendString(b, s.opts.Model)
	b = append(b, `,"object":"model","created":`...)
	b = strconv.AppendInt(b, s.started.Unix(), 10)
	b = append(b, `,"owned_by":"reprise","root":`...)
	b = llmapi.AppendString(b, s.opts.Preset)
	b = append(b, `,"parent":null`...)
	b = appendIntField(b, "max_model_len", s.cfg.MaxModelLen)
	b = append(b, `,"permission":[{"id":"modelperm-`+s.id()+`","object":"model_permission","created":`...)
	b = strconv.AppendInt(b, s.started.Unix(), 10)
	b = append(b, `,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":false,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}]}`...)
	writeJSON(w, http.StatusOK, b)
}

// serverInfo describes the engine as flat strings. vLLM's answer, under another
// key, is a dump of Python objects.
func (s *Server) serverInfo(w http.ResponseWriter, _ *http.Request) {
	b, err := json.Marshal(map[string]map[string]string{"sim_config": s.opts.Describe(s.cfg)})
	if err != nil {
		statusError(http.StatusInternalServerError).write(w)
		return
	}
	writeJSON(w, http.StatusOK, b)
}

func (s *Server) resetPrefixCache(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	ok := s.eng.ResetPrefixCache()
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, []byte(`{"success":`+strconv.FormatBool(ok)+`}`))
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	data, ok := readBody(w, r)
	if !ok {
		return
	}
	var b struct {
		body
		Prompt          *string `json:"prompt"`
		ReturnTokenStrs bool    `json:"return_token_strs"`
	}
	if err := json.Unmarshal(data, &b); err != nil {
		jsonError(data, err).write(w)
		return
	}
	var ids []uint32
	if b.Prompt != nil {
		ids = Tokenize([]uint32{}, *b.Prompt)
	} else {
		var c call
		if fail := c.chatPrompt(&b.body); fail != nil {
			fail.write(w)
			return
		}
		ids = c.prompts[0]
	}
	out := []byte(`{"count":`)
	out = strconv.AppendInt(out, int64(len(ids)), 10)
	out = appendIntField(out, "max_model_len", s.cfg.MaxModelLen)
	out = llmapi.AppendIDs(appendKey(out, "tokens"), ids)
	out = appendKey(out, "token_strs")
	if b.ReturnTokenStrs {
		out = append(out, '[')
		for i, id := range ids {
			if i > 0 {
				out = append(out, ',')
			}
			out = llmapi.AppendString(out, string(appendToken(nil, id)))
		}
		out = append(out, ']')
	} else {
		out = append(out, "null"...)
	}
	writeJSON(w, http.StatusOK, append(out, '}'))
}

func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) {
	data, ok := readBody(w, r)
	if !ok {
		return
	}
	var b struct {
		Tokens []uint32 `json:"tokens"`
	}
	if err := json.Unmarshal(data, &b); err != nil {
		jsonError(data, err).write(w)
		return
	}
	if fail := outOfVocabulary(b.Tokens); fail != nil {
		fail.write(w)
		return
	}
	writeJSON(w, http.StatusOK, append(llmapi.AppendString([]byte(`{"prompt":`), Detokenize(b.Tokens)), '}'))
}

var reasons = [...]string{engine.Length: "length", engine.Stop: "stop", engine.Aborted: "abort"}
