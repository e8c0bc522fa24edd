package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/report/html"
)

func serveCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "serve",
		Usage:     "show the runs of a folder in a browser, and compare any two",
		UsageText: "report serve DIR [flags]",
		Description: `Serve lists every run (a folder with a run.json) under DIR, shows each, and compares any
two of them. It reads and never writes, and opens nothing but the runs that it lists.
It listens on this machine alone unless --listen says otherwise, asks for no password,
and answers to localhost and to addresses only.

Examples:
  report serve runs/
  report serve runs/ --listen 127.0.0.1:9000

It ends with Ctrl-C. Exit status is 0 then, 1 if it cannot listen or DIR cannot be read,
2 for a usage error.`,
		Flags: []ucli.Flag{
			&ucli.StringFlag{Name: "listen", Value: "127.0.0.1:8377", Usage: "`ADDR`ess and port; port 0 takes any"},
		},
		Action: cli.Action(serve),
	}
}

// Bounds of a request; an answer may take as long as two runs take to compare.
const (
	headTimeout = 10 * time.Second
	maxHead     = 16 << 10
)

func serve(ctx context.Context, c *ucli.Context) error {
	if c.NArg() != 1 {
		return cli.Usagef("report serve runs/", "serve: want one folder, got %d", c.NArg())
	}
	if name := c.Args().First(); traceout.Remote(name) {
		return cli.Usagef("copy the runs here: trace cp "+name+" runs", "serve: shows a folder of this machine")
	}
	handler, err := html.NewServer(c.Args().First())
	if err != nil {
		return explain(c.Args().First(), err)
	}
	l, err := net.Listen("tcp", c.String("listen"))
	if err != nil {
		return &cli.Error{Code: cli.Failed, Err: err, Hint: "--listen 127.0.0.1:0 takes any free port"}
	}
	fmt.Fprintf(c.App.Writer, "http://%s/\n", l.Addr())
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		fmt.Fprintln(c.App.ErrWriter, "warning: anyone who reaches this machine can read these runs")
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: headTimeout, MaxHeaderBytes: maxHead, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
