// Serve runs the mock server as a process of its own, for benchmarks that play
// any client against it.
//
//	go run ./internal/wire/mock/serve --first-token 50ms --gap 5ms --per-write 1 --log seen.csv
//
// It prints its URL and serves until its standard input ends, an interrupt or a
// SIGTERM. The log then says when each request was there and when its first
// events were written: how well a client keeps to a schedule is seen by the
// server, the same way for every client.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"reprise/internal/wire/mock"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run() error {
	var o mock.Options
	addr := flag.String("addr", "127.0.0.1:0", "listen on this `IP:port`")
	log := flag.String("log", "", "at the end, write arrived_ns,answered_ns of each request to `FILE`, from any zero")
	flag.DurationVar(&o.FirstToken, "first-token", 0, "`TIME` from a request to its first event")
	flag.DurationVar(&o.Gap, "gap", 0, "`TIME` between two writes")
	flag.IntVar(&o.Events, "events", 16, "`N` token events where a request does not say")
	flag.IntVar(&o.PerWrite, "per-write", 0, "`N` token events in one write, 0: all")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("%q: only flags are taken", flag.Arg(0))
	}

	type sight struct{ arrived, answered time.Duration }
	var seen []sight
	if *log != "" {
		seen = make([]sight, 0, 1<<20)
		o.Seen = func(arrived, answered time.Duration) { seen = append(seen, sight{arrived, answered}) }
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	s, err := mock.Listen(*addr, o)
	if err != nil {
		return err
	}
	fmt.Println("http://" + s.Addr())
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-stop:
	case <-ended:
	}
	s.Close() // after it, nothing is seen
	if *log == "" {
		return nil
	}
	f, err := os.Create(*log)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, r := range seen {
		fmt.Fprintf(w, "%d,%d\n", r.arrived, r.answered)
	}
	return errors.Join(w.Flush(), f.Close())
}
