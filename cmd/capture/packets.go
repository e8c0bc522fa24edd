package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/capture/packet"
	"reprise/capture/packet/frame"
	"reprise/capture/packet/live"
	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/traceformat"
)

func init() { commands = append(commands, packetsCommand) }

func packetsCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "packets",
		Usage:     "read packets, from files or an interface",
		UsageText: "capture packets (FILE... | --interface NAME --port PORT) -o TRACE [flags]",
		Description: `Packets turns captured packets into a trace. A FILE is pcap or pcapng, plain or packed
with gzip or zstd, or - for standard input; several are merged by packet time. Mirrored
traffic is taken out of VXLAN, Geneve, GRE and ERSPAN. HTTP/1.1 and HTTP/2 in the clear
are read, from the middle of a connection too; for HTTPS, capture behind what terminates
TLS. What was not captured stays unknown, and every packet is accounted for.

From an interface it needs CAP_NET_RAW to open a socket. It then gives up all rights, and
root for --user, before it looks at a packet; the output must be writable for that user.

Examples:
  capture packets --interface eth0 --port 8000 -o trace.parquet
  capture packets monday-*.pcap.zst --port 8000 -o monday.parquet
  tcpdump -i any -s 0 -w - tcp port 8000 | capture packets - -o trace.parquet`,
		Flags: captureFlags(
			&ucli.StringFlag{Name: "interface", Aliases: []string{"i"}, Usage: "capture from interface `NAME`, or any"},
			&ucli.StringSliceFlag{Name: "read", Aliases: []string{"r"}, Usage: "read `FILE`; may be given more than once, like the arguments"},
			&ucli.StringSliceFlag{Name: "port", Aliases: []string{"p"}, Usage: "servers listen on `PORT`, or FIRST-LAST; may be given more than once", DefaultText: "all are looked into"},
			&ucli.StringFlag{Name: "tcp-memory", Value: "512 MiB", Usage: "most `SIZE` of memory for reassembly"},
			&ucli.StringFlag{Name: "connection-memory", Value: "1 MiB", Usage: "most `SIZE` of it for segments of one connection that are out of order"},
			&ucli.DurationFlag{Name: "idle", Value: time.Hour, Usage: "give a connection up that is silent for `DURATION` of packet time"},
			&ucli.DurationFlag{Name: "reorder", Value: time.Duration(frame.DefaultReorder), Usage: "put packets of files in order that are late by at most `DURATION`"},
			&ucli.StringFlag{Name: "ring", Value: "64 MiB", Usage: "`SIZE` of the ring that the kernel fills"},
			&ucli.StringFlag{Name: "user", Value: "nobody", Usage: "run as `USER` when started as root"},
			&ucli.BoolFlag{Name: "allow-root", Usage: "stay root"},
			&ucli.BoolFlag{Name: "strict", Usage: "fail if the kernel dropped packets"},
			&ucli.DurationFlag{Name: "duration", Usage: "end a capture from an interface after `DURATION`", DefaultText: "when interrupted"},
		),
		Action: cli.Action(capturePackets),
	}
}

// packetSlack is how much earlier than the first exchange another may begin:
// connections interleave, and so do files.
const packetSlack = time.Minute

func capturePackets(ctx context.Context, c *ucli.Context) error {
	files := append(c.StringSlice("read"), c.Args().Slice()...)
	iface := c.String("interface")
	switch {
	case iface == "" && len(files) == 0:
		return cli.Usagef("capture packets FILE -o TRACE, or capture packets --interface eth0 --port 8000 -o TRACE", "packets: from where?")
	case iface != "" && len(files) > 0:
		return cli.Usagef("", "--interface and files exclude each other")
	case iface == "" && c.IsSet("duration"):
		return cli.Usagef("trace slice cuts a trace", "--duration goes with --interface")
	}
	ports, err := parsePorts(c.StringSlice("port"))
	if err != nil {
		return err
	}
	if iface != "" && len(ports) == 0 {
		return cli.Usagef("--port 8000", "--interface %s: which port do servers listen on?", iface)
	}
	po := packet.Options{Ports: ports, Idle: c.Duration("idle")}
	if po.Memory, err = size(c, "tcp-memory"); err != nil {
		return err
	}
	perConn, err := size(c, "connection-memory")
	if err != nil {
		return err
	}
	po.PerConn = int(min(perConn, po.Memory))
	if iface != "" {
		return captureInterface(ctx, c, iface, po)
	}
	return captureFiles(ctx, c, files, po)
}

// parsePorts reads 8000, 8000-8010 and lists of them.
func parsePorts(list []string) ([]uint16, error) {
	var ports []uint16
	for _, v := range list {
		for part := range strings.SplitSeq(v, ",") {
			from, to, isRange := strings.Cut(part, "-")
			if !isRange {
				to = from
			}
			a, errA := strconv.ParseUint(from, 10, 16)
			b, errB := strconv.ParseUint(to, 10, 16)
			if errA != nil || errB != nil || a == 0 || b < a {
				return nil, cli.Usagef("--port 8000 or --port 8000-8010", "--port %q: no port", v)
			}
			for p := a; p <= b; p++ {
				ports = append(ports, uint16(p))
			}
		}
	}
	return ports, nil
}

// packetDetails are what --json prints beside the accounts of requests.
type packetDetails struct {
	Packets  packet.Stats `json:"packets"`
	Kernel   *live.Stats  `json:"kernel,omitempty"`
	Late     int64        `json:"late_packets"` // came too late to be put in order
	Warnings []string     `json:"warnings,omitempty"`
}

// packetRun is a capture that is going on.
type packetRun struct {
	out     *output
	engine  *packet.Engine
	details packetDetails
	stderr  io.Writer
	tty     bool
	shown   time.Time
	began   time.Time
	line    int // length of the progress line on the terminal
}

func startPackets(c *ucli.Context, po packet.Options, dialect string) (*packetRun, error) {
	o, err := captureOptions(c)
	if err != nil {
		return nil, err
	}
	o.Vantage, o.Dialect, o.Slack = "wire", dialect, packetSlack
	o.Clock = traceformat.Clock{Source: "realtime"}
	out, err := openOutput(c, o)
	if err != nil {
		return nil, err
	}
	// The budgets bound what is held; this keeps the garbage beside it small.
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(po.Memory + o.Memory + 256<<20)
	}
	now := time.Now()
	return &packetRun{
		out: out, engine: packet.New(packet.Into(out.Recorder), po),
		stderr: c.App.ErrWriter, tty: cli.IsTerminal(c.App.ErrWriter), shown: now, began: now,
	}, nil
}

// finish ends the capture and says what became of everything.
func (r *packetRun) finish(partial string) error {
	r.engine.Close()
	r.clearLine()
	d := &r.details
	d.Packets = r.engine.Stats()
	d.Warnings = append(d.Warnings, d.Packets.Warnings()...)
	if d.Late > 0 {
		d.Warnings = append(d.Warnings, units.Count(d.Late)+" packets were too late to be put in order")
	}
	fmt.Fprintln(r.stderr, d.Packets)
	for _, w := range d.Warnings {
		fmt.Fprintln(r.stderr, "warning:", w)
	}
	return errors.Join(r.out.finish(partial, d), d.Packets.Check())
}

// show prints how far it is: each second on a terminal, else when there is
// something to worry about.
func (r *packetRun) show(now time.Time, kernel *live.Stats, worry bool) {
	s := r.engine.Stats()
	acc := r.out.Accounts()
	text := fmt.Sprintf("%s packets, %s, %s requests, %d connections, %s", units.Count(s.Seen),
		units.Rate(float64(s.Seen)/now.Sub(r.began).Seconds()), units.Count(acc.Seen), s.Open, units.Bytes(s.Memory+r.out.Held()))
	if kernel != nil {
		text += fmt.Sprintf(", kernel dropped %s", units.Count(kernel.Dropped))
	}
	switch {
	case r.tty:
		r.clearLine()
		if n := cli.Columns(r.stderr, 80); len(text) >= n {
			text = text[:n-1]
		}
		fmt.Fprint(r.stderr, text)
		r.line = len(text)
	case worry || now.Sub(r.shown) >= 10*time.Second:
		fmt.Fprintln(r.stderr, text)
		r.shown = now
	}
}

func (r *packetRun) clearLine() {
	if r.line > 0 {
		fmt.Fprint(r.stderr, "\r"+strings.Repeat(" ", r.line)+"\r")
		r.line = 0
	}
}

func captureFiles(ctx context.Context, c *ucli.Context, files []string, po packet.Options) error {
	if slices.Contains(files, "-") {
		if err := stdinUntil(ctx); err != nil {
			return err
		}
	}
	src, err := frame.OpenAll(files, int64(c.Duration("reorder")))
	if err != nil {
		return err
	}
	defer src.Close()
	r, err := startPackets(c, po, "pcap")
	if err != nil {
		return err
	}
	next := time.Now().Add(time.Second)
	var p frame.Packet
	for n := 0; ; n++ {
		if n&0xfff == 0 {
			if ctx.Err() != nil {
				break
			}
			if now := time.Now(); now.After(next) {
				next = now.Add(time.Second)
				r.show(now, nil, false)
			}
		}
		if err := src.Next(&p); err != nil {
			break // io.EOF: what else can be wrong is in Problems
		}
		r.engine.Packet(&p)
	}
	r.details.Late = src.Late
	if ctx.Err() != nil { // what standard input was cut at is no damage
		return errors.Join(r.finish(traceformat.PartialInterrupted), context.Canceled)
	}
	if src.Secrets > 0 {
		r.details.Warnings = append(r.details.Warnings, "the files hold TLS keys, which are not used: what is encrypted stays unread, docs/capturing.md says what to do")
	}
	for _, err := range src.Problems {
		r.details.Warnings = append(r.details.Warnings, err.Error())
	}
	if err := r.finish(""); err != nil {
		return err
	}
	if len(src.Problems) > 0 {
		return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%d of the files ended in damage; what could be read is in the trace", len(src.Problems))}
	}
	return nil
}

// stdinUntil makes standard input end when ctx does. A read of a pipe to which
// nobody writes would wait for ever.
func stdinUntil(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	stdin := os.Stdin
	os.Stdin = r
	go func() {
		io.Copy(w, stdin) // an error is the end, like any other
		w.Close()
	}()
	context.AfterFunc(ctx, func() { w.Close() })
	return nil
}

func captureInterface(ctx context.Context, c *ucli.Context, iface string, po packet.Options) error {
	socket, err := openSocket(c, iface, po)
	if err != nil {
		return err
	}
	ring, err := socket.Map()
	if err != nil {
		return err
	}
	defer ring.Close()
	r, err := startPackets(c, po, "af_packet")
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return &cli.Error{Code: cli.Failed, Err: err, Hint: fmt.Sprintf("the capture runs as user %s: name another with --user, or a folder of theirs", c.String("user"))}
		}
		return err
	}
	if d := c.Duration("duration"); d > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, d)
		defer stop()
	}
	fmt.Fprintf(r.stderr, "capturing on %s\n", iface)
	err = r.follow(ctx, ring)
	kernel, statErr := ring.Stats()
	r.details.Kernel = &kernel
	if kernel.Dropped > 0 {
		r.details.Warnings = append(r.details.Warnings, fmt.Sprintf("the kernel dropped %s of %s packets: a larger --ring, or a narrower --port", units.Count(kernel.Dropped), units.Count(kernel.Received)))
	}
	if err := errors.Join(err, statErr, r.finish("")); err != nil {
		return err
	}
	if c.Bool("strict") && kernel.Dropped > 0 {
		return &cli.Error{Code: cli.Failed, Err: errors.New("--strict: the kernel dropped packets")}
	}
	return nil
}

// openSocket opens the socket and gives up what rights that took: it comes back
// in a new image of this program, where the socket is inherited.
func openSocket(c *ucli.Context, iface string, po packet.Options) (*live.Socket, error) {
	if s, err := live.Inherited(); s != nil || err != nil {
		return s, err
	}
	ring, err := size(c, "ring")
	if err != nil {
		return nil, err
	}
	s, err := live.Open(live.Options{Interface: iface, Ports: po.Ports, Ring: int(min(ring, 16<<30))})
	if errors.Is(err, os.ErrPermission) {
		return nil, &cli.Error{Code: cli.Failed, Err: err, Hint: "run it as root (it gives that up), or: setcap cap_net_raw+ep " + os.Args[0]}
	}
	if err != nil || c.Bool("allow-root") {
		return s, err
	}
	return nil, s.Reexec(c.String("user"))
}

// follow reads the ring until ctx ends, and once more what is in it then.
func (r *packetRun) follow(ctx context.Context, ring *live.Ring) error {
	next, dropped := time.Now().Add(time.Second), int64(0)
	for {
		over := ctx.Err() != nil
		n, err := ring.Read(100*time.Millisecond, r.engine.Packet)
		if err != nil {
			return err
		}
		if over && n == 0 {
			return nil
		}
		if now := time.Now(); now.After(next) {
			next = now.Add(time.Second)
			k, err := ring.Stats()
			if err != nil {
				return err
			}
			r.show(now, &k, k.Dropped > dropped)
			dropped = k.Dropped
		}
	}
}
