package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"reprise/traceformat"
)

// A leakTest holds words that must be nowhere, and the folder where commands
// leave whatever they leave.
type leakTest struct {
	t       *testing.T
	secrets map[string]string
	dir     string // outputs
	in      string // inputs, which may hold secrets
	n       int
}

func newLeakTest(t *testing.T) *leakTest {
	l := &leakTest{t: t, secrets: map[string]string{}, dir: t.TempDir(), in: t.TempDir()}
	for _, what := range []string{"tmp", "cwd"} {
		if err := os.Mkdir(filepath.Join(l.dir, what), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// secret is the word of that name, made when it is first asked for.
func (l *leakTest) secret(what string) string {
	if _, ok := l.secrets[what]; !ok {
		b := make([]byte, 12)
		rand.Read(b)
		l.secrets[what] = hex.EncodeToString(b)
	}
	return l.secrets[what]
}

// file is a name for an output.
func (l *leakTest) file(name string) string { return filepath.Join(l.dir, name) }

func (l *leakTest) input(name, text string) string {
	l.t.Helper()
	return writeConfig(l.t, l.in, name, text)
}

func (l *leakTest) command(args ...string) *exec.Cmd {
	cmd := exec.Command("capture", args...)
	cmd.Dir = l.file("cwd")
	cmd.Env = append(os.Environ(), "TMPDIR="+l.file("tmp"))
	return cmd
}

// run runs the program to its end and searches what it prints.
func (l *leakTest) run(args ...string) int {
	l.t.Helper()
	cmd := l.command(args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		l.t.Fatal(err)
	}
	l.search("what capture "+args[0]+" prints", out)
	return cmd.ProcessState.ExitCode()
}

func (l *leakTest) search(where string, b []byte) {
	l.t.Helper()
	l.n++
	for what, word := range l.secrets {
		if bytes.Contains(b, []byte(word)) {
			l.t.Errorf("the %s is in %s: %.80q", what, where, b[max(0, bytes.Index(b, []byte(word))-40):])
		}
	}
}

// files searches every file, and the rows and headers of traces as text too,
// since pages and journals are packed.
func (l *leakTest) files() {
	l.t.Helper()
	traces := 0
	err := filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			l.t.Errorf("%s has mode %v, want 0600", d.Name(), info.Mode())
		}
		l.search("the name of "+d.Name(), []byte(d.Name()))
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		l.search(d.Name(), b)
		if strings.HasSuffix(path, ".journal") {
			whole := filepath.Join(l.in, d.Name()+".parquet")
			work := writeConfig(l.t, l.in, d.Name(), string(b))
			if _, err := traceformat.Recover(work, whole); err != nil {
				l.t.Errorf("%s: %v", d.Name(), err)
				return nil
			}
			path = whole
		}
		if !strings.HasSuffix(path, ".parquet") {
			return nil
		}
		traces++
		h, rows := readTrace(l.t, path)
		text := fmt.Appendf(nil, "%+v\n", *h)
		for i := range rows {
			text = append(rows[i].AppendJSON(text), '\n')
			text = fmt.Appendf(text, "%+v\n", rows[i])
		}
		if len(rows) == 0 {
			l.t.Errorf("%s has no rows: nothing was searched", d.Name())
		}
		l.search("the rows of "+d.Name(), text)
		return nil
	})
	if err != nil {
		l.t.Error(err)
	}
	if traces == 0 {
		l.t.Error("no trace was left to search")
	}
}

// TestNoLeaks: no word of a prompt, an answer, a header, a query, a key or an
// address is in anything that a command prints or leaves behind, whether its
// input is sound or broken, and however it ends.
func TestNoLeaks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals")
	}
	t.Run("proxy and packets", func(t *testing.T) {
		l := newLeakTest(t)
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("X-Answer", l.secret("answer's header"))
			w.Header().Set("Set-Cookie", l.secret("cookie"))
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "data: {\"id\":%q,\"model\":%q,\"choices\":[{\"index\":0,\"delta\":{\"content\":%q}}]}\n\n", l.secret("answer's id"), "m? "+l.secret("answer's model"), l.secret("answer"))
			w.(http.Flusher).Flush()
			if r.Header.Get("X-Break") != "" {
				fmt.Fprintf(w, "data: {%s\n\n", l.secret("broken answer"))
				panic(http.ErrAbortHandler)
			}
			fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":%q}]}\n\ndata: {\"error\":{\"message\":%q,\"type\":%q}}\n\n", l.secret("finish reason"), l.secret("error message"), l.secret("error type"))
		}))
		defer up.Close()
		for _, what := range []string{"answer's header", "cookie", "answer's id", "answer's model", "answer", "broken answer", "finish reason", "error message", "error type"} {
			l.secret(what) // before handlers ask at the same time
		}
		send := func(address string) {
			for i, path := range []string{"/v1/chat/completions", "/v1/chat/completions", "/v1/chat/completions", "/v1/" + l.secret("path"), "/v1/chat/completions"} {
				body := fmt.Sprintf(`{"model":%q,"stream":true,"user":%q,"stop":[%q],"tools":[{"type":"function","function":{"name":%q}}],"messages":[{"role":"user","name":%q,"content":%q}],%q:1}`,
					"m? "+l.secret("model"), l.secret("user"), l.secret("stop"), l.secret("tool"), l.secret("name"), l.secret("prompt"), l.secret("field"))
				if i == 1 {
					body = body[:len(body)-20]
				}
				req, err := http.NewRequest(http.MethodPost, "http://"+address+path+"?q="+l.secret("query"), strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+l.secret("key"))
				req.Header.Set("Cookie", l.secret("request's cookie"))
				for _, name := range []string{"X-Session-Id", "X-Request-Id", "X-Api-Key", "X-Forwarded-For", "User-Agent", "Referer", "X-Other"} {
					req.Header.Set(name, l.secret(name))
				}
				if i == 4 {
					req.Header.Set("X-Break", "1")
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			http.DefaultClient.CloseIdleConnections()
		}
		address, b := startProxy(t, strings.TrimPrefix(up.URL, "http://"), "-o", l.file("proxy.parquet"), "--key-file", l.file("key"))
		pcap := filepath.Join(l.in, "lo.pcap")
		port := address[strings.LastIndex(address, ":")+1:]
		stopPcap := startPcap(t, pcap, port)
		send(address)
		if stopPcap != nil {
			stopPcap()
		}
		b.stop(t)
		l.search("what the proxy prints", []byte(b.stderr.String()+b.stdout.String()))

		// Killed: the journal holds no more than a trace would, and the next start
		// makes a trace of it.
		address, b = startProxy(t, strings.TrimPrefix(up.URL, "http://"), "-o", l.file("killed.parquet"), "--key-file", l.file("key"))
		send(address)
		time.Sleep(1500 * time.Millisecond) // rows are on the disk within a second
		b.end(syscall.SIGKILL)
		journals, err := filepath.Glob(l.file("killed*.journal"))
		if err != nil || len(journals) == 0 {
			t.Errorf("a killed proxy leaves no journal: %v", err)
		}
		l.files()
		address, b = startProxy(t, strings.TrimPrefix(up.URL, "http://"), "-o", l.file("killed.parquet"), "--key-file", l.file("key"))
		send(address)
		wait(t, func() bool { _, err := os.Stat(l.file("killed.parquet")); return err == nil })
		b.stop(t)
		l.search("what the proxy prints", []byte(b.stderr.String()+b.stdout.String()))
		if left, _ := filepath.Glob(l.file("*.journal")); len(left) > 0 {
			t.Errorf("journals are left: %d", len(left))
		}
		if stopPcap == nil {
			l.files()
			t.Skip("packets: tcpdump and root are needed")
		}
		whole, err := os.ReadFile(pcap)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(whole, []byte(l.secret("prompt"))) {
			t.Error("the prompt is not in the packets: nothing is shown")
		}
		if status := l.run("packets", pcap, "-o", l.file("packets.parquet"), "--json"); status != 0 {
			t.Errorf("packets: exit status %d", status)
		}
		cut := l.input("cut.pcap", string(whole[:len(whole)-len(whole)/3]))
		if status := l.run("packets", cut, "-o", l.file("cut.parquet")); status != 1 {
			t.Errorf("packets of a file that is cut: exit status %d, want 1", status)
		}
		l.run("packets", l.input("garbage.pcap", string(whole[:24])+strings.Repeat(l.secret("prompt"), 1000)), "-o", l.file("garbage.parquet"))
		os.Remove(l.file("garbage.parquet")) // has no rows to search
		l.run("packets", l.input("text.pcap", l.secret("prompt")), "-o", l.file("text.parquet"))
		l.files()
	})
	t.Run("logs", func(t *testing.T) {
		l := newLeakTest(t)
		line := fmt.Sprintf(`{"msec":"1795426022.563","remote_addr":%q,"request_method":"POST","request_uri":"/v1/chat/completions?q=%s","status":"200","request_time":"1.316","request_completion":"OK","http_authorization":%q,"http_x_session_id":%q,"request_id":%q,"http_user_agent":%q,"user":%q,"request_body":%q}`+"\n",
			l.secret("address"), l.secret("query"), l.secret("key"), l.secret("session"), l.secret("request id"), l.secret("agent"), l.secret("user"), l.secret("prompt"))
		other := fmt.Sprintf(`{"msec":"1795426022.563","remote_addr":"127.0.0.1","request_method":"GET","request_uri":"/%s","status":"200","request_time":"1.316"}`+"\n", l.secret("path"))
		broken := fmt.Sprintf(`{"msec":"1795426022.563","password":"%s`+"\n", l.secret("broken line"))
		litellm := fmt.Sprintf(`{"id":%q,"trace_id":%q,"call_type":"acompletion","status":"success","model":%q,"startTime":1795426022.1,"endTime":1795426023.2,"completionStartTime":1795426022.4,"prompt_tokens":11,"completion_tokens":5,"total_tokens":16,"messages":[{"role":"user","content":%q}],"response":{"choices":[{"message":{"content":%q}}]},"metadata":{"user_api_key_hash":%q,"user_api_key_alias":%q,"requester_ip_address":%q},"end_user":%q,"error_str":%q}`+"\n",
			l.secret("call id"), l.secret("trace id"), "m? "+l.secret("model"), l.secret("prompt"), l.secret("answer"), l.secret("key"), l.secret("alias"), l.secret("address"), l.secret("user"), l.secret("error"))
		good := l.input("access.log", strings.Repeat(line, 3)+other)
		for _, tt := range []struct {
			status int
			args   []string
		}{
			{0, []string{good, "-o", l.file("good.parquet")}},
			{0, []string{good, "-o", l.file("json.parquet"), "--json"}},
			{0, []string{good, "--explain"}},
			{1, []string{l.input("broken.log", line+broken), "-o", l.file("no.parquet")}},
			{0, []string{l.input("half.log", line+broken), "-o", l.file("half.parquet"), "--max-bad", "60%"}},
			{1, []string{l.input("all.log", strings.Repeat(broken, 20)), "--format", "nginx", "-o", l.file("no.parquet")}},
			{1, []string{l.input("notes.log", strings.Repeat(l.secret("broken line")+"\n", 20)), "-o", l.file("no.parquet")}},
			{0, []string{l.input("litellm.jsonl", litellm), "-o", l.file("litellm.parquet")}},
			{1, []string{l.input("mixed.log", litellm+line), "--format", "litellm", "-o", l.file("no.parquet")}},
		} {
			if status := l.run(append([]string{"logs"}, tt.args...)...); status != tt.status {
				t.Errorf("capture logs %s: exit status %d, want %d", filepath.Base(tt.args[0]), status, tt.status)
			}
		}
		if _, err := os.Stat(l.file("no.parquet")); err == nil {
			t.Error("a log that cannot be read became a trace")
		}
		l.files()
	})
}
