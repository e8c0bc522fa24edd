package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/traceformat"
	"reprise/traceformat/convert"
)

func sliceCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "slice",
		Usage:     "cut a part out of a trace",
		UsageText: "trace slice FILE -o FILE [flags]",
		Description: `Slice keeps the rows that pass every filter, with their ids. Times count from --start
on. --share keeps whole sessions (rows without one are on their own) or whole clients,
chosen by a hash: the same ones in every trace of the same ids, and the shares of one
--seed lie inside each other (1/16 in 1/8). --skip and --limit count what the other
filters kept.

Examples:
  trace slice day.parquet --start 9h --duration 1h -o nine.parquet
  trace slice day.parquet --share 1/16 --by client -o few.parquet
  trace slice day.parquet --model llama-3-8b --limit 1000 -o - | trace info -`,
		Flags: append(append([]ucli.Flag{
			&ucli.DurationFlag{Name: "start", Usage: "leave out what arrives before `D`"},
			&ucli.DurationFlag{Name: "duration", Usage: "keep `D` from there on (all)"},
			&ucli.Int64Flag{Name: "skip", Usage: "leave out the first `N` rows"},
			&ucli.Int64Flag{Name: "limit", Usage: "keep `N` rows (all)"},
			&ucli.StringSliceFlag{Name: "client", Usage: "keep client `NAME`"},
			&ucli.StringSliceFlag{Name: "model", Usage: "keep model `NAME`"},
			&ucli.StringFlag{Name: "share", Usage: "keep a `SHARE` such as 1/16 or 0.1"},
			&ucli.StringFlag{Name: "by", Value: "session", Usage: "take the share by `UNIT`: session or client"},
			&ucli.Uint64Flag{Name: "seed", Usage: "choose another share with `N`"},
		}, writeFlags()...), readFlags()...),
		Action: cli.Action(slice),
	}
}

// A cut says which rows slice keeps.
type cut struct {
	from, to        time.Duration
	skip, limit     int64
	clients, models []string
	share           float64 // 1: all
	by              string
	seed            uint64
}

func readCut(c *ucli.Context) (*cut, error) {
	k := &cut{
		from: c.Duration("start"), to: math.MaxInt64, skip: c.Int64("skip"), limit: math.MaxInt64,
		clients: c.StringSlice("client"), models: c.StringSlice("model"), share: 1, by: c.String("by"), seed: c.Uint64("seed"),
	}
	if k.from < 0 {
		return nil, cli.Usagef("", "--start %v: want 0 or more", k.from)
	}
	if c.IsSet("duration") {
		d := c.Duration("duration")
		if d <= 0 {
			return nil, cli.Usagef("", "--duration %v: want more than 0", d)
		}
		if k.to = k.from + d; k.to < k.from {
			k.to = math.MaxInt64
		}
	}
	if k.skip < 0 {
		return nil, cli.Usagef("", "--skip %d: want 0 or more", k.skip)
	}
	if c.IsSet("limit") {
		if k.limit = c.Int64("limit"); k.limit <= 0 {
			return nil, cli.Usagef("", "--limit %d: want more than 0", k.limit)
		}
	}
	if k.by != "session" && k.by != "client" {
		return nil, cli.Usagef("", "--by %q: want session or client", k.by)
	}
	if s := c.String("share"); s != "" {
		var err error
		if k.share, err = parseShare(s); err != nil {
			return nil, cli.Usagef("", "--share %q: %v", s, err)
		}
	}
	return k, nil
}

// parseShare reads "1/16" or "0.0625".
func parseShare(s string) (float64, error) {
	over, under, isRatio := strings.Cut(s, "/")
	v, err := strconv.ParseFloat(over, 64)
	if err == nil && isRatio {
		var d float64
		if d, err = strconv.ParseFloat(under, 64); err == nil {
			v /= d
		}
	}
	if err != nil || !(v > 0 && v <= 1) {
		return 0, fmt.Errorf("want a share above 0 and up to 1, such as 1/16 or 0.1")
	}
	return v, nil
}

// wants reports whether the row passes the filters that look at one row.
func (k *cut) wants(r *traceformat.Row) bool {
	return r.Arrival >= k.from && r.Arrival < k.to &&
		(len(k.clients) == 0 || slices.Contains(k.clients, r.Client)) &&
		(len(k.models) == 0 || slices.Contains(k.models, r.Model)) &&
		(k.share == 1 || k.draw(r) < k.share)
}

// draw places the unit that the row belongs to on [0, 1). It depends on the
// seed and the unit alone.
func (k *cut) draw(r *traceformat.Row) float64 {
	var b []byte
	switch session, ok := r.Session.Get(); {
	case k.by == "client":
		b = append([]byte("client "), r.Client...)
	case ok:
		b = binary.LittleEndian.AppendUint64([]byte("session "), uint64(session))
	default:
		b = binary.LittleEndian.AppendUint64([]byte("row "), uint64(r.ID))
	}
	h := fnv.New64a()
	h.Write(b)
	// FNV leaves neighbouring inputs close together; the finaliser of
	// SplitMix64 spreads them (Steele, Lea and Flood, 2014).
	x := h.Sum64() + k.seed*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}

// shift moves the times of a row that count from the start of the trace.
func shift(r *traceformat.Row, by time.Duration) {
	r.Arrival += by
	for _, t := range []*traceformat.Opt[time.Duration]{&r.Scheduled, &r.Wake, &r.Conn, &r.Sent, &r.Headers, &r.FirstEvent, &r.Close} {
		if t.OK {
			t.V += by
		}
	}
}

// header is what became of the header of the source.
func (k *cut) header(source *traceformat.Header) *traceformat.Header {
	h := source.Clone()
	if !h.Start.IsZero() {
		h.Start = h.Start.Add(k.from)
	}
	steps := h.Clock.Steps[:0]
	for _, s := range h.Clock.Steps {
		if s.At >= k.from && s.At < k.to {
			s.At -= k.from
			steps = append(steps, s)
		}
	}
	h.Clock.Steps = steps
	if h.Extra == nil {
		h.Extra = map[string]string{}
	}
	if ns, err := strconv.ParseInt(h.Extra[convert.SourceStart], 10, 64); err == nil {
		h.Extra[convert.SourceStart] = strconv.FormatInt(ns+int64(k.from), 10)
	}
	if k.share < 1 {
		rate := h.Sampling.Rate
		if rate == 0 {
			rate = 1
		}
		h.Sampling = traceformat.Sampling{Rate: rate * k.share, By: k.by}
	}
	// What was lost while recording cannot be told apart by row, so that the
	// counts of the whole are kept aside.
	if len(h.Rows.Dropped) > 0 {
		lost := int64(0)
		for _, n := range h.Rows.Dropped {
			lost += n
		}
		h.Extra["slice.source_dropped"] = fmt.Sprintf("%d of %d", lost, h.Rows.Seen)
	}
	h.Rows = traceformat.Counts{}
	return h
}

func slice(ctx context.Context, c *ucli.Context) error {
	names, err := arguments(c, 1, 1)
	if err != nil {
		return err
	}
	k, err := readCut(c)
	if err != nil {
		return err
	}
	name, err := traceout.NativeTarget(c)
	if err != nil {
		return err
	}
	r, err := open(c, names[0], traceformat.Within(k.from, k.to))
	if err != nil {
		return err
	}
	defer r.Close()
	return traceout.Write(ctx, c, name, k.header(r.Header()), func(w *traceformat.Writer, p *traceout.Progress) error {
		sorted := r.Header().Sorted
		kept := parents{}
		for row, err := range r.All() {
			if err != nil {
				return err
			}
			if err := p.Row(ctx); err != nil {
				return err
			}
			if sorted && row.Arrival >= k.to {
				break
			}
			if !k.wants(row) {
				continue
			}
			if k.skip > 0 {
				k.skip--
				continue
			}
			shift(row, -k.from)
			kept.note(row)
			if err := w.Write(row); err != nil {
				return err
			}
			if w.Rows() == k.limit {
				break
			}
		}
		if w.Rows() == 0 {
			return fmt.Errorf("%s: no row passes the filters, nothing was written", names[0])
		}
		*w.Header() = *k.header(r.Header())
		if kept.orphans > 0 {
			p.Clear()
			fmt.Fprintf(c.App.ErrWriter, "%s lost the parent, which is not in the slice\n", traceout.Rows(kept.orphans))
		}
		return nil
	})
}

// maxParents bounds the rows that a later one may name as its parent, half of
// it at a time.
const maxParents = 1 << 21

// parents remembers which rows are in a slice, so that no row names a parent
// that is not. A parent more than maxParents/2 rows back is forgotten.
type parents struct {
	young, old map[rowKey]struct{}
	any        bool // the trace has conversations
	orphans    int64
}

func (p *parents) note(r *traceformat.Row) {
	p.any = p.any || r.Session.OK || r.Parent.OK
	if !p.any {
		return
	}
	if r.Parent.OK {
		parent := rowKey{r.Parent.V, r.Lap}
		_, young := p.young[parent]
		if _, old := p.old[parent]; !young && !old {
			r.Parent = traceformat.Opt[int64]{}
			p.orphans++
		}
	}
	if len(p.young) >= maxParents/2 {
		p.old, p.young = p.young, nil
	}
	if p.young == nil {
		p.young = map[rowKey]struct{}{}
	}
	p.young[rowKey{r.ID, r.Lap}] = struct{}{}
}
