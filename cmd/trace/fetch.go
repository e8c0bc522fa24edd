package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/traceformat"
)

// A publicTrace is one that its authors put on the network.
type publicTrace struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	URL     string `json:"url"`
	Format  string `json:"format"`
	Licence string `json:"licence"`
	// Size in bytes and SHA256 in hex are those of the file that this project
	// was measured with; 0 and empty where it was not at hand, and then the
	// content is checked to be a trace of Format.
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

const (
	azureData    = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data/"
	mooncakeData = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/"
	burstData    = "https://github.com/HPMLL/BurstGPT/releases/download/v1.1/"
	bailianData  = "https://raw.githubusercontent.com/alibaba-edu/qwen-bailian-usagetraces-anon/main/"
)

// publicTraces is the registry of trace fetch.
var publicTraces = []publicTrace{
	{"azure-conv", "Azure 2023, a conversation service: one hour, 19,366 rows", azureData + "AzureLLMInferenceTrace_conv.csv", "azure", "CC-BY 4.0",
		719188, "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8"},
	{"azure-code", "Azure 2023, a coding service: one hour, 8,819 rows", azureData + "AzureLLMInferenceTrace_code.csv", "azure", "CC-BY 4.0",
		320117, "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6"},
	{"mooncake-conv", "Mooncake FAST25, conversations: one hour, 12,031 rows, prefix blocks", mooncakeData + "traces/conversation_trace.jsonl", "mooncake", "Apache-2.0",
		3029533, "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df"},
	{"mooncake-toolagent", "Mooncake FAST25, tools and agents: prefix blocks", mooncakeData + "traces/toolagent_trace.jsonl", "mooncake", "Apache-2.0", 0, ""},
	{"mooncake-arxiv", "Mooncake, the trace of the arXiv paper: prefix blocks", mooncakeData + "arxiv-trace/mooncake_trace.jsonl", "mooncake", "Apache-2.0", 0, ""},
	{"burstgpt-1", "BurstGPT, months 1 and 2: 1.43 million rows", burstData + "BurstGPT_1.csv", "burstgpt", "CC-BY 4.0", 0, ""},
	{"burstgpt-2", "BurstGPT, months 3 and 4: 3.86 million rows", burstData + "BurstGPT_2.csv", "burstgpt", "CC-BY 4.0", 0, ""},
	{"bailian-to-c", "Qwen-Bailian trace A, people: sessions, prefix blocks", bailianData + "qwen_traceA_blksz_16.jsonl", "bailian", "Apache-2.0", 0, ""},
	{"bailian-to-b", "Qwen-Bailian trace B, programs: prefix blocks", bailianData + "qwen_traceB_blksz_16.jsonl", "bailian", "Apache-2.0", 0, ""},
	{"bailian-coder", "Qwen-Bailian, coding: sessions, prefix blocks", bailianData + "qwen_coder_blksz_16.jsonl", "bailian", "Apache-2.0", 0, ""},
	{"bailian-thinking", "Qwen-Bailian, reasoning: sessions, prefix blocks", bailianData + "qwen_thinking_blksz_16.jsonl", "bailian", "Apache-2.0", 0, ""},
}

func fetchCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "fetch",
		Usage:     "download a public trace",
		UsageText: "trace fetch [NAME] [-o FILE] [flags]",
		Description: `Fetch downloads a public trace and verifies it: size and SHA-256 where this project has
had the file at hand, otherwise that all of it reads as a trace of its format, and the digest
is printed. A download that was cut goes on where it stopped. Without NAME it lists what
there is. The licence is that of the trace's authors.

--registry names a JSON file with entries of the same form as the list's --json, for mirrors
inside a network.

Examples:
  trace fetch
  trace fetch azure-conv
  trace fetch mooncake-toolagent -o toolagent.jsonl

Exit status is 0 if done, 1 if the file cannot be had or is not the one expected, 2 for a
usage error, 130 if interrupted.`,
		Flags: append(traceoutFlags(),
			&ucli.StringFlag{Name: "registry", Usage: "take names and addresses from `FILE`"},
			&ucli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "give up when nothing arrives for this `TIME`"},
			cli.JSONFlag()),
		Action: cli.Action(fetch),
	}
}

func traceoutFlags() []ucli.Flag {
	return []ucli.Flag{
		&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`", DefaultText: "the name at the source"},
		&ucli.BoolFlag{Name: "force", Usage: "replace FILE if it exists"},
	}
}

func fetch(ctx context.Context, c *ucli.Context) error {
	registry := publicTraces
	if name := c.String("registry"); name != "" {
		var err error
		if registry, err = readRegistry(name); err != nil {
			return err
		}
	}
	if c.NArg() == 0 {
		if c.String("output") != "" {
			return cli.Usagef("trace fetch lists the names", "fetch: which trace?")
		}
		return listTraces(c, registry)
	}
	if c.NArg() > 1 {
		return cli.Usagef("trace fetch --help", "fetch takes one name and got %d", c.NArg())
	}
	var t *publicTrace
	var names []string
	for i := range registry {
		names = append(names, registry[i].Name)
		if registry[i].Name == c.Args().First() {
			t = &registry[i]
		}
	}
	if t == nil {
		return cli.Usagef("the names are "+strings.Join(names, ", "), "no public trace %q", c.Args().First())
	}
	name := c.String("output")
	if name == "" {
		name = path.Base(t.URL)
	}
	if name == "-" {
		return cli.Usagef("-o FILE", "fetch verifies a file before it counts, which a pipe cannot be")
	}
	if err := traceout.CheckTarget(name, c.Bool("force")); err != nil {
		return err
	}
	d := &download{trace: t, part: name + ".part", stall: c.Duration("timeout"), progress: c.App.ErrWriter, live: cli.IsTerminal(c.App.ErrWriter)}
	digest, size, err := d.run(ctx)
	if err != nil {
		return err
	}
	if err := os.Rename(d.part, name); err != nil {
		return err
	}
	if c.Bool("json") {
		return cli.WriteJSON(c.App.Writer, struct {
			Name   string `json:"name"`
			File   string `json:"file"`
			Size   int64  `json:"size"`
			SHA256 string `json:"sha256"`
			Known  bool   `json:"digest_was_known"`
		}{t.Name, name, size, digest, t.SHA256 != ""})
	}
	word := "as expected"
	if t.SHA256 == "" {
		word = "not known here before; the content reads as " + t.Format
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s  %s  %s\nsha256 %s (%s)\nlicence %s\n", t.Name, units.Bytes(size), name, digest, word, t.Licence)
	return err
}

// maxRegistry bounds a registry file.
const maxRegistry = 1 << 20

func readRegistry(name string) ([]publicTrace, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, cli.Usagef("", "--registry: %w", err)
	}
	defer f.Close()
	var list []publicTrace
	if err := json.NewDecoder(io.LimitReader(f, maxRegistry)).Decode(&list); err != nil {
		return nil, cli.Usagef("trace fetch --json prints one", "--registry %s: not a list of traces: %w", name, err)
	}
	for i, t := range list {
		u, err := url.Parse(t.URL)
		if t.Name == "" || err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, cli.Usagef("", "--registry %s: entry %d needs a name and an http address", name, i)
		}
		if base := path.Base(u.Path); base == "." || base == "/" {
			return nil, cli.Usagef("", "--registry %s: entry %d: the address names no file", name, i)
		}
	}
	return list, nil
}

func listTraces(c *ucli.Context, registry []publicTrace) error {
	if c.Bool("json") {
		return cli.WriteJSON(c.App.Writer, registry)
	}
	t := cli.Table{Head: []string{"name", "size", "licence", "what"}}
	for _, p := range registry {
		size := "?"
		if p.Size > 0 {
			size = units.Bytes(p.Size)
		}
		t.Row(p.Name, size, p.Licence, p.About)
	}
	return t.Write(c.App.Writer, "")
}

// maxDownload bounds a file whose size is not known.
const maxDownload = 16 << 30

// A download fetches one trace into a file beside its target.
type download struct {
	trace    *publicTrace
	part     string
	stall    time.Duration
	progress io.Writer
	live     bool
}

func (d *download) run(ctx context.Context) (digest string, size int64, err error) {
	if size, err = d.transfer(ctx); err != nil {
		return "", 0, err
	}
	t := d.trace
	if t.Size > 0 && size != t.Size {
		return "", 0, d.wrong(fmt.Errorf("%d bytes arrived, want %d", size, t.Size))
	}
	if digest, err = fileDigest(d.part); err != nil {
		return "", 0, err
	}
	if t.SHA256 != "" {
		if !strings.EqualFold(digest, t.SHA256) {
			return "", 0, d.wrong(fmt.Errorf("sha256 is %s, want %s", digest, t.SHA256))
		}
		return digest, size, nil
	}
	if err := d.readThrough(ctx); err != nil {
		return "", 0, err
	}
	return digest, size, nil
}

// wrong gives up a file that is not the one that was asked for.
func (d *download) wrong(err error) error {
	os.Remove(d.part)
	return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: not the file that is expected: %w", d.trace.URL, err),
		Hint: "the authors may have changed it, or something on the way did; a file that you trust is read as it is: trace info FILE"}
}

// readThrough checks that a file without a known digest is a trace.
func (d *download) readThrough(ctx context.Context) error {
	r, err := traceformat.Open(d.part, traceformat.WithFormat(d.trace.Format), traceformat.Param("lengths", string(traceformat.LengthsCumulative)))
	if err == nil {
		defer r.Close()
		n := 0
		for _, e := range r.All() {
			if n++; n%traceout.Every == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if err = e; err != nil {
				break
			}
		}
	}
	if err != nil {
		return d.wrong(fmt.Errorf("it does not read as %s: %w", d.trace.Format, err))
	}
	return nil
}

// transfer downloads what is missing of the file and returns its size.
func (d *download) transfer(ctx context.Context) (int64, error) {
	f, err := os.OpenFile(d.part, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if d.trace.Size > 0 && have == d.trace.Size {
		return have, nil
	}
	if d.trace.Size > 0 && have > d.trace.Size {
		have = 0
	}
	limit := d.trace.Size
	if limit == 0 {
		limit = maxDownload
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := errors.New("the server has gone silent")
	watch := time.AfterFunc(d.stall, func() { cancel(stalled) })
	defer watch.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.trace.URL, nil)
	if err != nil {
		return 0, err
	}
	// A body that was packed on the way has another length and no ranges.
	req.Header.Set("Accept-Encoding", "identity")
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, d.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have)):
	case resp.StatusCode == http.StatusOK:
		have = 0 // the server starts over
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && have > 0 && d.trace.Size == 0:
		return have, nil // all of it is here already; what it is will be checked
	default:
		return 0, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: the server says %s", d.trace.URL, resp.Status),
			Hint: "the authors may have moved it; a file that was had by other means is read as it is: trace info FILE"}
	}
	if err := f.Truncate(have); err != nil {
		return 0, err
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return 0, err
	}
	total := int64(-1)
	if resp.ContentLength >= 0 {
		total = have + resp.ContentLength
	}
	size, err := d.copy(f, resp.Body, have, total, limit, func() { watch.Reset(d.stall) })
	if err != nil {
		if ctx.Err() != nil && !errors.Is(context.Cause(ctx), stalled) {
			fmt.Fprintf(d.progress, "%s of it are in %s; the same command goes on from there\n", units.Bytes(size), d.part)
			return 0, context.Cause(ctx)
		}
		return 0, d.unreachable(ctx, err)
	}
	if total >= 0 && size < total {
		return 0, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: the connection ended after %d of %d bytes", d.trace.URL, size, total), Hint: "the same command goes on from there"}
	}
	return size, f.Sync()
}

func (d *download) copy(f io.Writer, body io.Reader, have, total, limit int64, alive func()) (int64, error) {
	buf := make([]byte, 64<<10)
	shown := time.Now()
	for {
		n, err := body.Read(buf)
		if n > 0 {
			alive()
			if have+int64(n) > limit {
				return have, fmt.Errorf("the file is larger than %s", units.Bytes(limit))
			}
			if _, err := f.Write(buf[:n]); err != nil {
				return have, err
			}
			have += int64(n)
			if d.live && time.Since(shown) > 200*time.Millisecond {
				shown = time.Now()
				of := ""
				if total > 0 {
					of = " of " + units.Bytes(total)
				}
				fmt.Fprintf(d.progress, "\r\x1b[K%s%s", units.Bytes(have), of)
			}
		}
		if err != nil {
			if d.live {
				fmt.Fprint(d.progress, "\r\x1b[K")
			}
			if err == io.EOF {
				return have, nil
			}
			return have, err
		}
	}
}

// unreachable says in plain words why nothing came, and what to do without.
func (d *download) unreachable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	host := d.trace.URL
	if u, e := url.Parse(d.trace.URL); e == nil {
		host = u.Host
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		err = fmt.Errorf("its name does not resolve (%s)", dns.Err)
	} else if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("cannot download from %s: %w", host, err),
		Hint: "without a network, replay model:azure-conv needs no file; or bring " + d.trace.URL + " here by other means: it is read as it is"}
}

func fileDigest(name string) (string, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is gone", name)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
