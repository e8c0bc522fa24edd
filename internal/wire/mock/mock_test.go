package mock

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0", o)
	if err != nil {
		if runtime.GOOS != "linux" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// ask posts a body and returns the answer's data lines and when each came.
func ask(t *testing.T, s *Server, path, body string) (data []string, at []time.Duration) {
	t.Helper()
	began := time.Now()
	resp, err := http.Post("http://"+s.Addr()+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("%s, %v", resp.Status, resp.Header)
	}
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if d, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
			data, at = append(data, d), append(at, time.Since(began))
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	return data, at
}

type event struct {
	Choices []struct {
		Text   string
		Delta  struct{ Content string }
		Finish string `json:"finish_reason"`
	}
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
	}
}

func TestAnswers(t *testing.T) {
	for _, per := range []int{0, 1, 3} {
		s := start(t, Options{Events: 4, PerWrite: per})
		for _, tt := range []struct {
			path, body string
			n, prompt  int
			running    bool
		}{
			{"/v1/completions", `{"prompt":[1,2,3],"max_tokens":7}`, 7, 3, false},
			{"/v1/completions", `{"prompt":[1,2,3],"max_tokens":7}`, 7, 3, false},
			{"/v1/completions", `{"prompt":[1],"max_tokens": 2}`, 2, 1, false},
			{"/v1/completions", `{"prompt":[1],"max_tokens":1000,"stream_options":{"continuous_usage_stats":true}}`, 1000, 1, true},
			{"/v1/chat/completions", `{"messages":[]}`, 4, 0, false},
		} {
			data, _ := ask(t, s, tt.path, tt.body)
			if len(data) != tt.n+2 || data[tt.n+1] != "[DONE]" {
				t.Fatalf("%s %s: %d events, the last %s; want %d and two more", tt.path, tt.body, len(data), data[len(data)-1], tt.n)
			}
			for i, d := range data[:tt.n+1] {
				var e event
				if err := json.Unmarshal([]byte(d), &e); err != nil {
					t.Fatalf("%s: %v", d, err)
				}
				if i == tt.n {
					if e.Usage.Prompt != tt.prompt || e.Usage.Completion != tt.n {
						t.Errorf("usage = %+v, want %d and %d", e.Usage, tt.prompt, tt.n)
					}
					continue
				}
				c := e.Choices[0]
				if c.Text+c.Delta.Content != " a" || (c.Delta.Content != "") != strings.Contains(tt.path, "chat") || (c.Finish == "length") != (i == tt.n-1) {
					t.Errorf("event %d of %d: %s", i, tt.n, d)
				}
				if (e.Usage != nil) != tt.running || tt.running && e.Usage.Completion != i+1 {
					t.Errorf("event %d: usage %+v", i, e.Usage)
				}
			}
		}
	}
}

func TestDelays(t *testing.T) {
	const first, gap = 40 * time.Millisecond, 10 * time.Millisecond
	var delays []time.Duration
	s := start(t, Options{FirstToken: first, Gap: gap, PerWrite: 2, Seen: func(arrived, answered time.Duration) {
		delays = append(delays, answered-arrived)
	}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, at := ask(t, s, "/v1/completions", `{"max_tokens":6}`)
			for i, want := range []time.Duration{first, first, first + gap, first + gap, first + 2*gap, first + 2*gap} {
				if late := at[i] - want; late < 0 || late > 2*time.Second {
					t.Errorf("event %d came after %v, want %v", i, at[i], want)
				}
			}
		})
	}
	wg.Wait()
	st := s.Stats()
	if st.Requests != 20 || st.Events != 120 || st.LateMax <= 0 || st.LateMax > 2*time.Second {
		t.Errorf("%+v", st)
	}
	resp, err := http.Get("http://" + s.Addr() + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got Stats
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got != s.Stats() {
		t.Errorf("/stats = %+v, %v; want %+v", got, err, st)
	}
	s.Close()
	if len(delays) != 20 || slices.Min(delays) < first || slices.Max(delays) > first+st.LateMax+time.Second {
		t.Errorf("seen: %v", delays)
	}
}

// Requests in pieces, together, and none at all.
func TestHostileClients(t *testing.T) {
	s := start(t, Options{Events: 2})
	req := "POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
	for at := 1; at < len(req); at++ {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, req[:at])
		time.Sleep(time.Millisecond)
		io.WriteString(c, req[at:]+req)
		br := bufio.NewReader(c)
		for range 2 {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("cut at %d: %v", at, err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || !strings.HasSuffix(string(b), "data: [DONE]\n\n") {
				t.Fatalf("cut at %d: %q, %v", at, b, err)
			}
		}
		c.Close()
	}
	for _, bad := range []string{"nonsense\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"} {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, bad)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			t.Errorf("%q was answered %q, %v; want the connection closed", bad, b, err)
		}
		c.Close()
	}
	for path, want := range map[string]int{"/v1/models": 200, "/version": 200, "/health": 200, "/nowhere": 404} {
		resp, err := http.Get("http://" + s.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// A client that does not read must not stop the others, nor lose anything.
func TestSlowReader(t *testing.T) {
	s := start(t, Options{})
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 100_000
	body := fmt.Sprintf(`{"max_tokens":%d}`, n)
	fmt.Fprintf(c, "POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	time.Sleep(20 * time.Millisecond)
	ask(t, s, "/v1/completions", "{}")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || strings.Count(string(b), "data: ") != n+2 {
		t.Errorf("%d events, %v; want %d", strings.Count(string(b), "data: "), err, n+2)
	}
}
