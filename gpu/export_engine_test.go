package gpu

import "net/http"

// SetTransport makes e ask nobody.
func (e *Engine) SetTransport(t http.RoundTripper) { e.page.client.Transport = t }
