package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
)

func copyCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "cp",
		Usage:     "copy traces and runs to object storage and back",
		UsageText: "trace cp FROM TO [flags]",
		Description: `Cp copies a file, a run directory or a dataset to object storage or from there; one side
is a name such as s3://bucket/key, gs://bucket/key or azblob://container/key. An object
appears when all of it was sent, a file when all of it has come. What is there already
with the same SHA-256 is not sent again, so that a copy that broke off is continued by the
same command.

It needs a program of make cloud. Credentials are those of the environment, as the tools of
each cloud find them; docs/storage.md says more.

Examples:
  trace cp day.parquet s3://traces/day.parquet
  trace cp run/ 's3://runs/tuesday?region=eu-west-1'
  trace cp gs://traces/january january`,
		Flags:  []ucli.Flag{&ucli.BoolFlag{Name: "force", Usage: "replace what exists"}},
		Action: cli.Action(copyTraces),
	}
}

func copyTraces(ctx context.Context, c *ucli.Context) error {
	if c.NArg() != 2 {
		return cli.Usagef("trace cp --help", "cp takes two names and got %d", c.NArg())
	}
	from, to, force := c.Args().Get(0), c.Args().Get(1), c.Bool("force")
	if traceout.Remote(from) == traceout.Remote(to) {
		return cli.Usagef("cp copies files of this machine; the tools of the stores copy between them", "one of the two names has to start with s3://, gs:// or azblob://")
	}
	store, err := traceout.RemoteStore()
	if err != nil {
		return err
	}
	if traceout.Remote(to) {
		return sendAll(ctx, c, store, from, to, force)
	}
	return fetchAll(ctx, c, store, from, to, force)
}

func sendAll(ctx context.Context, c *ucli.Context, store traceout.Store, from, to string, force bool) error {
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: no such file", from)
	}
	if err != nil {
		return err
	}
	say := func(there bool, file, name string) (err error) {
		if there {
			_, err = fmt.Fprintf(c.App.ErrWriter, "%s is there already\n", name)
		} else {
			_, err = fmt.Fprintf(c.App.ErrWriter, "copied %s to %s\n", file, name)
		}
		return err
	}
	if info.IsDir() {
		err = traceout.SendFolder(ctx, store, from, to, force, say)
	} else {
		if strings.HasSuffix(traceout.Key(to), "/") {
			to = traceout.Below(to, filepath.Base(from))
		}
		var there bool
		if there, err = store.Upload(ctx, from, to, force); err == nil {
			return say(there, from, to)
		}
		if !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%s: %w", to, err)
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return &cli.Error{Code: cli.Failed, Err: err, Hint: "the same command goes on where this one ended"}
	}
	return err
}

func fetchAll(ctx context.Context, c *ucli.Context, store traceout.Store, from, to string, force bool) error {
	say := func(name, file string) error {
		_, err := fmt.Fprintf(c.App.ErrWriter, "copied %s to %s\n", name, file)
		return err
	}
	err := traceout.FetchFolder(ctx, store, from, to, force, say)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// No folder: an object.
	if info, err := os.Stat(to); err == nil && info.IsDir() {
		to = filepath.Join(to, path.Base(traceout.Key(from)))
	}
	if err := store.Download(ctx, from, to, force); err != nil {
		return err
	}
	return say(from, to)
}
