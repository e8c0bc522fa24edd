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

// below is the name of key under a name in object storage, whose parameters
// stay at the end.
func below(name, key string) string {
	name, params, has := strings.Cut(name, "?")
	name = strings.TrimSuffix(name, "/") + "/" + key
	if has {
		name += "?" + params
	}
	return name
}

func sendAll(ctx context.Context, c *ucli.Context, store traceout.Store, from, to string, force bool) error {
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: no such file", from)
	}
	if err != nil {
		return err
	}
	send := func(file, name string) error {
		done, err := store.Upload(ctx, file, name, force)
		switch {
		case errors.Is(err, context.Canceled):
			return err
		case err != nil:
			return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: %w", name, err), Hint: "the same command goes on where this one ended"}
		case done:
			_, err = fmt.Fprintf(c.App.ErrWriter, "%s is there already\n", name)
		default:
			_, err = fmt.Fprintf(c.App.ErrWriter, "copied %s to %s\n", file, name)
		}
		return err
	}
	if !info.IsDir() {
		if strings.HasSuffix(strings.SplitN(to, "?", 2)[0], "/") {
			to = below(to, filepath.Base(from))
		}
		return send(from, to)
	}
	return filepath.WalkDir(from, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !e.Type().IsRegular() || strings.HasSuffix(file, ".tmp") {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		return send(file, below(to, filepath.ToSlash(rel)))
	})
}

func fetchAll(ctx context.Context, c *ucli.Context, store traceout.Store, from, to string, force bool) error {
	keys, err := store.List(ctx, from)
	if err != nil {
		return err
	}
	fetch := func(name, file string) error {
		if err := store.Download(ctx, name, file, force); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.App.ErrWriter, "copied %s to %s\n", name, file)
		return err
	}
	if len(keys) == 0 {
		if info, err := os.Stat(to); err == nil && info.IsDir() {
			to = filepath.Join(to, path.Base(strings.SplitN(from, "?", 2)[0]))
		}
		return fetch(from, to)
	}
	for _, key := range keys {
		file := filepath.Join(to, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
			return err
		}
		if err := fetch(below(from, key), file); err != nil {
			return err
		}
	}
	return nil
}
