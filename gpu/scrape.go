package gpu

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net/http"
	"time"
)

// maxPage bounds what is read of a page of metrics. vLLM's has 58 KB an engine
// and SGLang's 97 KB, of which 16 are a fifth of this; a DCGM exporter's of eight
// GPUs with every field is 200 KB.
const maxPage = 8 << 20

// A scraper fetches one page of Prometheus metrics again and again. It is for
// one goroutine.
type scraper struct {
	url    string
	header http.Header // of the request
	max    int         // bytes of a page
	hint   string      // says how the page is switched on, may be empty
	client *http.Client
	body   bytes.Buffer // the page of the last fetch that succeeded
}

// newScraper returns one that asks without proxies and follows no redirects: an
// answer from elsewhere is not this server's, and would get its key.
func newScraper(url string, conf *tls.Config) *scraper {
	return &scraper{url: url, max: maxPage, client: &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: conf, MaxIdleConns: 1, MaxConnsPerHost: 1, IdleConnTimeout: time.Minute,
			DisableCompression:     true, // a page is bounded by what is sent, then
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// fetch reads the page into s.body. at is in the middle between the question and
// the beginning of the answer, which is when a server writes the page. The error
// is a [*Fault].
func (s *scraper) fetch(ctx context.Context, now func() time.Duration) (at time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return 0, AsFault(err)
	}
	maps.Copy(req.Header, s.header)
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	asked := now()
	res, err := s.client.Do(req)
	if err != nil {
		return 0, AsFault(err)
	}
	defer res.Body.Close()
	at = asked + (now()-asked)/2
	switch {
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return 0, Faultf(FaultUnauthorized, "status %d", res.StatusCode)
	case res.StatusCode >= 400 && s.hint != "":
		return 0, Faultf(FaultRefused, "status %d: %s", res.StatusCode, s.hint)
	case res.StatusCode != http.StatusOK:
		return 0, Faultf(FaultRefused, "status %d", res.StatusCode)
	case res.ContentLength > int64(s.max):
		return 0, s.tooLong()
	}
	s.body.Reset()
	n, err := s.body.ReadFrom(io.LimitReader(res.Body, int64(s.max)+1))
	switch {
	case n > int64(s.max):
		return 0, s.tooLong()
	case err != nil:
		return 0, AsFault(err)
	}
	return at, nil
}

func (s *scraper) tooLong() error {
	s.body = bytes.Buffer{} // it may have grown to the limit
	return Faultf(FaultTooLong, "the page is longer than %d KiB", s.max>>10)
}

func (s *scraper) close() { s.client.CloseIdleConnections() }
