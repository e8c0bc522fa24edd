package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	ucli "github.com/urfave/cli/v2"

	"reprise/capture"
	"reprise/internal/cli"
	"reprise/internal/tokenizer"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/traceformat"
)

// captureFlags are the flags of every command that records: where to, and what
// [captureOptions] reads.
func captureFlags(more ...ucli.Flag) []ucli.Flag {
	return append(more,
		&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, or - for standard output"},
		&ucli.BoolFlag{Name: "force", Usage: "replace FILE if it exists"},
		&ucli.StringFlag{Name: "key-file", Usage: "keep the key of all hashes in `FILE`, made if it is not there, so that captures can be joined", DefaultText: "in memory alone"},
		&ucli.StringFlag{Name: "sample", Usage: "record `1/N` of the sessions or clients, each as a whole", DefaultText: "all"},
		&ucli.StringFlag{Name: "sample-by", Value: "session", Usage: "what is sampled as a whole, `WHAT`: session or client"},
		&ucli.StringFlag{Name: "tokenizer", Usage: "the model's tokenizer.json `FILE`: counts lengths that no server says and cuts prompts into blocks of tokens"},
		&ucli.IntFlag{Name: "block-bytes", Value: capture.DefaultBlockBytes, Usage: "`BYTES` of message content in a block, without a tokenizer"},
		&ucli.IntFlag{Name: "block-tokens", Value: capture.DefaultBlockTokens, Usage: "`TOKENS` in a block, with one"},
		&ucli.StringSliceFlag{Name: "session-header", Usage: "header `NAME` that holds a session id; may be given more than once", DefaultText: words(capture.SessionHeaders())},
		&ucli.StringSliceFlag{Name: "request-id-header", Usage: "header `NAME` by which retries are told; may be given more than once", DefaultText: words(capture.RequestIDHeaders())},
		&ucli.DurationFlag{Name: "retry-window", Value: capture.DefaultRetryWindow, Usage: "how long after a refused attempt the same request counts as its retry; 0: never"},
		&ucli.StringFlag{Name: "memory", Value: units.Bytes(capture.DefaultMemory), Usage: "most `SIZE` of memory for requests and answers under way"},
		&ucli.StringFlag{Name: "max-body", Value: units.Bytes(capture.DefaultMaxBody), Usage: "most `SIZE` of one body that is looked at"},
		cli.JSONFlag(),
	)
}

// captureOptions turns captureFlags into options.
func captureOptions(c *ucli.Context) (capture.Options, error) {
	o := capture.Options{
		BlockBytes: c.Int("block-bytes"), BlockTokens: c.Int("block-tokens"),
		RetryWindow: c.Duration("retry-window"),
		Program:     "capture " + c.Command.Name, Version: cli.Version(),
	}
	if o.BlockBytes < 1 || o.BlockTokens < 1 {
		return o, cli.Usagef("", "--block-bytes and --block-tokens: want 1 or more")
	}
	if o.RetryWindow == 0 {
		o.RetryWindow = -1
	}
	o.SessionHeaders = c.StringSlice("session-header")
	o.RequestIDHeaders = c.StringSlice("request-id-header")
	var err error
	if o.Sample, err = capture.ParseSample(c.String("sample"), c.String("sample-by")); err != nil {
		return o, &cli.Error{Code: cli.Usage, Err: err, Hint: "--sample 1/16 --sample-by session"}
	}
	if o.Memory, err = size(c, "memory"); err != nil {
		return o, err
	}
	if o.MaxBody, err = size(c, "max-body"); err != nil {
		return o, err
	}
	// One key for all files of a capture, if it rolls them.
	o.Key = capture.NewKey()
	if name := c.String("key-file"); name != "" {
		if o.Key, err = capture.LoadKey(name); err != nil {
			return o, err
		}
	}
	if name := c.String("tokenizer"); name != "" {
		if o.Tokenizer, err = tokenizer.Load(name); err != nil {
			return o, err
		}
		o.TokenizerName = tokenizerName(name)
	}
	return o, nil
}

// tokenizerName names a tokenizer by its file, or by the folder of a model:
// the path would tell of the machine.
func tokenizerName(path string) string {
	path = filepath.Clean(path)
	if base := filepath.Base(path); base != "tokenizer.json" {
		return base
	}
	if dir := filepath.Base(filepath.Dir(path)); dir != "." && dir != string(filepath.Separator) {
		return dir
	}
	return "tokenizer.json"
}

// size reads a flag such as 512MiB, "256 MiB", 1GiB or 1000000.
func size(c *ucli.Context, flag string) (int64, error) {
	n, ok := parseSize(c.String(flag))
	if !ok {
		return 0, cli.Usagef("", "--%s %q: want a size such as 64KiB, 512MiB or 2GiB", flag, c.String(flag))
	}
	return n, nil
}

func parseSize(s string) (int64, bool) {
	shift := 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			s, shift = rest, 10*(i+1)
			break
		}
	}
	s = strings.TrimSpace(strings.TrimSuffix(s, " B"))
	v, err := strconv.ParseFloat(s, 64) // "64.0 MiB" is how a default is printed
	if v *= float64(int64(1) << shift); err != nil || !(v >= 1 && v <= 1<<50) {
		return 0, false
	}
	return int64(v), true
}

// An output is a trace that is being recorded: a journal beside the file, which
// becomes the file, sorted, at the end.
type output struct {
	*capture.Recorder
	c       *ucli.Context
	name    string // as the user wrote it
	path    string // where the file goes
	temp    string // folder to remove, or ""
	journal *traceformat.Journal
}

// openOutput starts the recording that the flags ask for. The journal that a
// killed capture left at the same place is saved first.
func openOutput(c *ucli.Context, o capture.Options) (_ *output, err error) {
	name, err := traceout.NativeTarget(c)
	if err != nil {
		return nil, err
	}
	out := &output{c: c, name: name, path: name}
	if name == "-" {
		if out.temp, err = os.MkdirTemp("", "reprise-"); err != nil {
			return nil, err
		}
		out.path = filepath.Join(out.temp, "trace.parquet")
	} else {
		if out.path, err = placeHere(c, name); err != nil {
			return nil, err
		}
		if err := recoverJournal(c.App.ErrWriter, out.path); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			out.discard()
		}
	}()
	h := &traceformat.Header{Origin: traceformat.Origin{Program: o.Program, Version: o.Version}}
	if out.journal, err = traceformat.CreateJournal(traceformat.JournalPath(out.path), h); err != nil {
		return nil, err
	}
	if out.Recorder, err = capture.NewRecorder(out.journal, o); err != nil {
		return nil, &cli.Error{Code: cli.Usage, Err: err}
	}
	// What a crash leaves behind should say whose it is.
	return out, out.journal.SetHeader(out.Header())
}

// placeHere is where what goes to the output called name is written: what is for
// object storage is a file in the current folder until it is uploaded.
func placeHere(c *ucli.Context, name string) (string, error) {
	if !traceout.Remote(name) {
		return name, nil
	}
	place := path.Base(traceout.Key(name))
	return place, traceout.CheckTarget(place, c.Bool("force"))
}

// send uploads a finished file, if it goes to object storage, and removes it here.
func send(c *ucli.Context, place, name string) error {
	if !traceout.Remote(name) {
		return nil
	}
	// An interrupt may have ended the capture: the next one ends this.
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := traceout.Upload(ctx, place, name, c.Bool("force")); err != nil {
		return err
	}
	return os.Remove(place)
}

// recoverJournal saves what a capture that was killed has left at name, beside
// it: a service that is started again must not stop at that.
func recoverJournal(stderr io.Writer, name string) error {
	journal := traceformat.JournalPath(name)
	if _, err := os.Lstat(journal); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	base := strings.TrimSuffix(name, filepath.Ext(name))
	for i := 1; ; i++ {
		saved := fmt.Sprintf("%s.recovered-%d.parquet", base, i)
		if _, err := os.Lstat(saved); err == nil {
			continue
		}
		r, err := traceformat.Recover(journal, saved, traceformat.Rebase())
		if errors.Is(err, traceformat.ErrEmpty) {
			return os.Remove(journal)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(stderr, "saved %s rows of an earlier capture to %s\n", units.Count(r.Rows), saved)
		if len(r.Damage) == 0 {
			return nil
		}
		// What could not be read stays, out of the way.
		return os.Rename(journal, saved+".journal")
	}
}

// discard gives up an output that has not begun.
func (o *output) discard() {
	if o.journal != nil {
		o.journal.Close()
		os.Remove(traceformat.JournalPath(o.path))
	}
	if o.temp != "" {
		os.RemoveAll(o.temp)
	}
}

// A result is what --json prints of a capture that is done.
type result struct {
	Output   string           `json:"output"`
	Rows     int64            `json:"rows"`
	Accounts capture.Accounts `json:"accounts"`
	Keys     string           `json:"keys"` // fingerprint
	Partial  string           `json:"partial,omitempty"`
	Details  any              `json:"details,omitempty"` // of the source
}

// finish closes the recorder, writes the trace and says what is in it; details,
// if not nil, are printed with --json. Partial is the reason for
// Header.Partial: [traceformat.PartialInterrupted] or empty. An interrupt is no
// failure: a live capture has no other end.
func (o *output) finish(partial string, details any) error {
	if o.temp != "" {
		defer os.RemoveAll(o.temp)
	}
	err := o.Recorder.Close()
	h := o.Header()
	h.Partial = partial
	if e := o.journal.SetHeader(h); err == nil {
		err = e
	}
	if e := o.journal.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err // the journal stays, for trace recover
	}
	opts := []traceformat.WriteOption{traceformat.Rebase()}
	if o.c.Bool("force") {
		opts = append(opts, traceformat.Overwrite())
	}
	if err := traceformat.Seal(traceformat.JournalPath(o.path), o.path, opts...); err != nil {
		return err
	}
	info, err := os.Stat(o.path)
	if err != nil {
		return err
	}
	if err := send(o.c, o.path, o.name); err != nil {
		return err
	}
	acc := o.Accounts()
	stdout := o.c.App.Writer
	if o.name == "-" {
		if err := copyFile(stdout, o.path); err != nil {
			return err
		}
		stdout = o.c.App.ErrWriter
	}
	if o.c.Bool("json") {
		return cli.WriteJSON(stdout, result{Output: o.name, Rows: acc.Recorded, Accounts: acc, Keys: h.Keys, Partial: partial, Details: details})
	}
	to := o.name
	if to == "-" {
		to = "standard output"
	}
	noun := "rows"
	if acc.Recorded == 1 {
		noun = "row"
	}
	_, err = fmt.Fprintf(o.c.App.ErrWriter, "%s\nwrote %s %s (%s) to %s\n", acc, units.Count(acc.Recorded), noun, units.Bytes(info.Size()), to)
	return err
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// without returns flags less those of the given names, for a source that they
// mean nothing to.
func without(flags []ucli.Flag, names ...string) []ucli.Flag {
	return slices.DeleteFunc(flags, func(f ucli.Flag) bool { return slices.Contains(names, f.Names()[0]) })
}
