package selftest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"

	"reprise/internal/wire/mock"
)

// marker is the environment variable that turns a process into the mock.
const marker = "REPRISE_MOCK_SERVE"

// MaybeServe runs the mock server and exits if [Run] started this process;
// otherwise it returns at once. Programs call it before anything else.
func MaybeServe() {
	raw, child := os.LookupEnv(marker)
	if !child {
		return
	}
	os.Unsetenv(marker)
	var o mock.Options
	err := json.Unmarshal([]byte(raw), &o)
	if err == nil {
		var s *mock.Server
		if s, err = mock.Listen("127.0.0.1:0", o); err == nil {
			fmt.Println("http://" + s.Addr())
			_, _ = io.Copy(io.Discard, os.Stdin) // ends when the parent does
			s.Close()
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, "mock:", err)
	os.Exit(1)
}

type process struct {
	url   string
	cmd   *exec.Cmd
	stdin io.Closer
}

func startMock(ctx context.Context, o mock.Options) (*process, error) {
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, exe)}
	p.cmd.Env = append(os.Environ(), marker+"="+string(raw))
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		p.stop()
		return nil, fmt.Errorf("the mock server did not start: does this program call selftest.MaybeServe first?")
	}
	p.url = lines.Text()
	return p, nil
}

func (p *process) stop() {
	p.stdin.Close()
	_ = p.cmd.Wait()
}

func (p *process) stats(ctx context.Context) (s mock.Stats, err error) {
	req, err := http.NewRequestWithContext(ctx, "GET", p.url+"/stats", nil)
	if err != nil {
		return s, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer res.Body.Close()
	return s, json.NewDecoder(res.Body).Decode(&s)
}
