// Package traceout is how programs write traces: where to, with what care, and
// with what they say meanwhile.
package traceout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/traceformat"
)

// ErrExists is what an existing output gives without --force.
func ErrExists(name string) error {
	return cli.Usagef("--force replaces it", "%s exists", name)
}

// Target checks --output before anything is read: converting a large trace
// only to find that its name is taken would be a waste.
func Target(c *ucli.Context) (string, error) {
	name := c.String("output")
	switch {
	case name == "":
		return "", cli.Usagef("-o FILE, or -o - for standard output", "%s: where to?", c.Command.Name)
	case name == "-":
		return name, nil
	}
	return name, CheckTarget(name, c.Bool("force"))
}

// CheckTarget reports why a file cannot be written at name.
func CheckTarget(name string, force bool) error {
	if Remote(name) {
		return cli.Usagef("write it here and upload it: trace cp FILE "+name, "%s: traces alone are written to object storage", name)
	}
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !isDir(filepath.Dir(name)) {
			return cli.Usagef("", "%s: no such folder", filepath.Dir(name))
		}
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return cli.Usagef("name a file in it", "%s is a directory", name)
	case !force:
		return ErrExists(name)
	// A pipe or a device would be replaced by a file.
	case !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0:
		return cli.Usagef("", "%s is not a regular file", name)
	}
	return nil
}

// NativeTarget is Target for commands that write Parquet, which may go to object
// storage.
func NativeTarget(c *ucli.Context) (string, error) {
	if name := c.String("output"); Remote(name) {
		return name, checkRemote(c.Context, name, c.Bool("force"))
	}
	name, err := Target(c)
	if err != nil {
		return "", err
	}
	if name == "-" && cli.IsTerminal(c.App.Writer) {
		return "", cli.Usagef("-o FILE, or pipe it into another command", "Parquet is not for a terminal")
	}
	for _, ext := range []string{".csv", ".json", ".jsonl", ".gz", ".zst"} {
		if strings.HasSuffix(name, ext) {
			return "", cli.Usagef("trace export --to NAME writes other formats", "%s: %s writes Parquet", name, c.Command.Name)
		}
	}
	return name, nil
}

// Write writes a trace to the output that NativeTarget gave. fill writes
// the rows and then may change the header.
//
// A trace for object storage is written to a temporary file, and uploaded when it
// is whole and was read back; where the upload fails, the file stays.
func Write(ctx context.Context, c *ucli.Context, name string, h *traceformat.Header, fill func(*traceformat.Writer, *Progress) error) (err error) {
	path := name
	opts := []traceformat.WriteOption{}
	if c.Bool("force") {
		opts = append(opts, traceformat.Overwrite())
	}
	keep := false
	if name == "-" || Remote(name) {
		// A Parquet file is read back before it counts as written, which a pipe
		// and an object cannot be.
		dir, err := os.MkdirTemp("", "reprise-")
		if err != nil {
			return err
		}
		defer func() {
			if !keep {
				os.RemoveAll(dir)
			}
		}()
		path = filepath.Join(dir, "trace.parquet")
	}
	w, err := traceformat.Create(path, h, opts...)
	if err != nil {
		return err
	}
	defer w.Abort()
	p := NewProgress(c.App.ErrWriter)
	defer p.Clear()
	if err := fill(w, p); err != nil {
		return err
	}
	n := w.Rows()
	if err := w.Close(); err != nil {
		return err
	}
	if Remote(name) {
		p.Clear()
		if err := Upload(ctx, path, name, c.Bool("force")); err != nil {
			keep = true
			return err
		}
	}
	if name == "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(c.App.Writer, f); err != nil {
			return err
		}
	}
	return p.Done(n, path, name)
}

// FolderTarget is Target for what is written as a folder.
func FolderTarget(c *ucli.Context) (string, error) {
	name := c.String("output")
	switch _, err := os.Lstat(name); {
	case name == "":
		return "", cli.Usagef("-o FOLDER", "%s: where to?", c.Command.Name)
	case Remote(name):
		return name, CheckFolder(c.Context, name)
	case name == "-":
		return "", cli.Usagef("-o FOLDER", "a folder of files cannot go to standard output")
	case err == nil:
		return "", cli.Usagef("name another, or remove it: a folder is not written over", "%s exists", name)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	if dir := filepath.Dir(filepath.Clean(name)); !isDir(dir) {
		return "", cli.Usagef("", "%s: no such folder", dir)
	}
	return name, nil
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// WriteDataset writes a trace as a folder of files to the output that
// FolderTarget gave. fill is as that of Write. One for object storage is written
// to a temporary folder, and uploaded when it is whole; where the upload fails,
// the folder stays.
func WriteDataset(ctx context.Context, c *ucli.Context, name string, by traceformat.Partition, h *traceformat.Header, fill func(*traceformat.DatasetWriter, *Progress) error) error {
	path := name
	if Remote(name) {
		temp, err := os.MkdirTemp("", "reprise-")
		if err != nil {
			return err
		}
		defer os.Remove(temp) // stays where the folder in it does
		path = filepath.Join(temp, "dataset")
	}
	w, err := traceformat.CreateDataset(path, h, by)
	if err != nil {
		return err
	}
	defer w.Abort()
	p := NewProgress(c.App.ErrWriter)
	defer p.Clear()
	if err := fill(w, p); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	p.Clear()
	if Remote(name) {
		if err := PublishFolder(ctx, path, name); err != nil {
			return err
		}
	}
	files := "1 file"
	if n := w.Files(); n != 1 {
		files = fmt.Sprintf("%d files", n)
	}
	_, err = fmt.Fprintf(c.App.ErrWriter, "wrote %s to %s in %s\n", Rows(w.Rows()), files, name)
	return err
}

// A RowWriter takes rows: a trace, or a dataset.
type RowWriter interface {
	Write(*traceformat.Row) error
}

// Copy writes every row, as fill of Write does that changes none.
func Copy(ctx context.Context, w RowWriter, rows iter.Seq2[*traceformat.Row, error], p *Progress) error {
	for row, err := range rows {
		if err != nil {
			return err
		}
		if err := p.Row(ctx); err != nil {
			return err
		}
		if err := w.Write(row); err != nil {
			return err
		}
	}
	return nil
}

// A Progress line is shown on a terminal while rows are written.
type Progress struct {
	w     io.Writer
	live  bool
	start time.Time
	last  time.Time
	rows  int64
	shown bool
}

// NewProgress shows progress on w if that is a terminal.
func NewProgress(w io.Writer) *Progress {
	now := time.Now()
	return &Progress{w: w, live: cli.IsTerminal(w), start: now, last: now}
}

// Every is how many rows pass between two looks at the clock and the context.
const Every = 4096

// Row counts one more row and returns the error of a context that has ended.
func (p *Progress) Row(ctx context.Context) error {
	p.rows++
	if p.rows%Every != 0 {
		return nil
	}
	if p.live && time.Since(p.last) > 200*time.Millisecond {
		p.last, p.shown = time.Now(), true
		fmt.Fprintf(p.w, "\r\x1b[K%s, %s", Rows(p.rows), units.Rate(float64(p.rows)/time.Since(p.start).Seconds()))
	}
	return ctx.Err()
}

// Clear removes the line.
func (p *Progress) Clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// Done says what was written.
func (p *Progress) Done(n int64, path, name string) error {
	p.Clear()
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if name == "-" {
		name = "standard output"
	}
	_, err = fmt.Fprintf(p.w, "wrote %s (%s) to %s\n", Rows(n), units.Bytes(info.Size()), name)
	return err
}

// Rows is a number of rows with the noun.
func Rows(n int64) string {
	if n == 1 {
		return "1 row"
	}
	return units.Count(n) + " rows"
}

// A File is written beside its name and takes it when it is whole.
type File struct {
	io.Writer
	path  string
	force bool
	file  *os.File
	pack  io.Closer // compressor, or nil
}

// CreateFile starts a file that is packed if its name ends in .gz or .zst.
func CreateFile(path string, force bool) (*File, error) {
	temp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d.tmp", filepath.Base(path), os.Getpid()))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	o := &File{Writer: f, path: path, force: force, file: f}
	switch filepath.Ext(path) {
	case ".gz":
		z := gzip.NewWriter(f)
		o.Writer, o.pack = z, z
	case ".zst":
		z, err := zstd.NewWriter(f)
		if err != nil {
			o.Abort()
			return nil, err
		}
		o.Writer, o.pack = z, z
	}
	return o, nil
}

// Abort removes the file, unless it was published.
func (o *File) Abort() {
	if o.file != nil {
		o.file.Close()
		os.Remove(o.file.Name())
		o.file = nil
	}
}

// Publish gives the finished file its name.
func (o *File) Publish() error {
	defer o.Abort()
	if o.pack != nil {
		if err := o.pack.Close(); err != nil {
			return err
		}
	}
	if err := o.file.Sync(); err != nil {
		return err
	}
	temp := o.file.Name()
	if err := o.file.Close(); err != nil {
		return err
	}
	if o.force {
		return os.Rename(temp, o.path)
	}
	// A link does not replace what another program has put there meanwhile.
	switch err := os.Link(temp, o.path); {
	case err == nil:
		return nil // Abort removes the temporary name
	case errors.Is(err, fs.ErrExist):
		return ErrExists(o.path)
	default: // a file system without links
		return os.Rename(temp, o.path)
	}
}
