package server

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"reprise/internal/llmapi"
)

// A Fault makes some requests go wrong, for tests of clients.
type Fault struct {
	Kind FaultKind `json:"kind"`
	// After is how many tokens a request sends first. (For Refuse, how many
	// requests are accepted first.)
	After int `json:"after,omitempty"`
	// Every picks each Nth generation request, counted from 1; 0 and 1 pick all.
	Every  int `json:"every,omitempty"`
	Status int `json:"status,omitempty"` // of FaultStatus
}

// A FaultKind is what goes wrong.
type FaultKind string

const (
	// Stall stops sending and leaves the connection open.
	Stall FaultKind = "stall"
	// Die closes the connection without ending the answer.
	Die FaultKind = "die"
	// Truncate announces a chunk, sends a part of it and closes.
	Truncate FaultKind = "truncate"
	// ErrorEvent sends vLLM's error event, then [DONE], and ends cleanly. What
	// does not stream is answered with status 500.
	ErrorEvent FaultKind = "error-event"
	// HalfUTF8 puts the first two bytes of a three-byte character into the text
	// of one event and the third into the next.
	HalfUTF8 FaultKind = "half-utf8"
	// Status answers Fault.Status with vLLM's error body.
	Status FaultKind = "status"
	// Refuse stops listening.
	Refuse FaultKind = "refuse"
	// Crash ends the engine as a fatal error in vLLM's does: error event and
	// [DONE] on all streams, 500 for the rest, then the process exits.
	Crash FaultKind = "crash"
	// Exit ends the process at once.
	Exit FaultKind = "exit"
)

var faultKinds = []FaultKind{Stall, Die, Truncate, ErrorEvent, HalfUTF8, Status, Refuse, Crash, Exit}

func (f Fault) validate() error {
	switch {
	case !slices.Contains(faultKinds, f.Kind):
		return fmt.Errorf("unknown kind %q", f.Kind)
	case f.After < 0 || f.Every < 0:
		return fmt.Errorf("%s after %d tokens of every %d requests: want no negative number", f.Kind, f.After, f.Every)
	case f.Kind == Status && (f.Status < 400 || f.Status > 599):
		return fmt.Errorf("status is %d, want 400 to 599", f.Status)
	}
	return nil
}

// faultFor returns the fault of the nth request, if it has one.
func (s *Server) faultFor(nth uint64) *Fault {
	for i := range s.opts.Faults {
		f := &s.opts.Faults[i]
		if f.Kind != Refuse && nth%uint64(max(1, f.Every)) == 0 {
			return f
		}
	}
	return nil
}

// engineDead is vLLM's message for a request that loses its engine.
const engineDead = "EngineCore encountered an issue. See stack trace (above) for the root cause."

// deadEvent is the event that ends a stream whose engine died. Unlike all other
// bodies it has spaces: another JSON encoder writes it in vLLM.
const deadEvent = `data: {"error": {"message": "` + engineDead + `", "type": "InternalServerError", "param": null, "code": 500}}` + "\n\n"

const doneEvent = "data: [DONE]\n\n"

// An apiError is an error body of vLLM.
type apiError struct {
	status  int
	kind    string
	message string
	param   string // empty: null
}

func (e *apiError) append(dst []byte) []byte {
	dst = append(dst, `{"error":{"message":`...)
	dst = llmapi.AppendString(dst, e.message)
	dst = append(dst, `,"type":`...)
	dst = llmapi.AppendString(dst, e.kind)
	dst = append(dst, `,"param":`...)
	if e.param == "" {
		dst = append(dst, "null"...)
	} else {
		dst = llmapi.AppendString(dst, e.param)
	}
	dst = append(dst, `,"code":`...)
	dst = strconv.AppendInt(dst, int64(e.status), 10)
	return append(dst, "}}"...)
}

func (e *apiError) write(w http.ResponseWriter) {
	if e.status == http.StatusTooManyRequests || e.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, e.status, e.append(nil))
}

// badRequest is a check that failed; param is named in the message as vLLM does.
func badRequest(message string) *apiError {
	return &apiError{status: http.StatusBadRequest, kind: "BadRequestError", message: message}
}

func badParam(message, param string, value int) *apiError {
	e := badRequest(fmt.Sprintf("%s (parameter=%s, value=%d)", message, param, value))
	e.param = param
	return e
}

// invalid is a body that does not have the shape of a request.
func invalid(loc, kind, message string) *apiError {
	return &apiError{
		status: http.StatusBadRequest, kind: "Bad Request", param: loc,
		message: fmt.Sprintf("1 validation error:\n  {'type': '%s', 'loc': '%s', 'msg': '%s'}", kind, loc, strings.ReplaceAll(message, "'", `\'`)),
	}
}

func statusError(status int) *apiError {
	kind := "BadRequestError"
	if status >= 500 {
		kind = "InternalServerError"
	}
	return &apiError{status: status, kind: kind, message: http.StatusText(status)}
}
