package capture

// requestState is what an Exchange knows of its request.
type requestState struct {
	ended bool
}

func (q *requestState) head(o *Options, method, target string, h Header) (reason string) { return "" }
func (q *requestState) body(x *Exchange, p []byte)                                       {}
func (q *requestState) gap(x *Exchange, n int64)                                         {}
func (q *requestState) release()                                                         {}

func (x *Exchange) endRequest(complete bool) { x.ask.ended = true }

var (
	sessionHeaders   = []string{"x-session-id"}
	requestIDHeaders = []string{"x-request-id"}
)

// SessionHeaders are the headers that can name a session, unless Options say
// otherwise.
func SessionHeaders() []string { return sessionHeaders }

// RequestIDHeaders are the headers by which attempts at one request are told,
// unless Options say otherwise.
func RequestIDHeaders() []string { return requestIDHeaders }
