package pcaptest

import (
	"cmp"
	"io"
	"math/rand/v2"
	"slices"

	"reprise/capture/packet/frame"
)

func sortPackets(p []Packet) {
	slices.SortStableFunc(p, func(a, b Packet) int { return cmp.Compare(a.Time, b.Time) })
}

// Lose deletes a share of the packets at random.
func Lose(p []Packet, share float64, r *rand.Rand) []Packet {
	return slices.DeleteFunc(slices.Clone(p), func(Packet) bool { return r.Float64() < share })
}

// Behead deletes the first n packets of every connection.
func Behead(p []Packet, n int) []Packet {
	seen := map[int]int{}
	return slices.DeleteFunc(slices.Clone(p), func(p Packet) bool {
		seen[p.Conn]++
		return seen[p.Conn] <= n
	})
}

// Shuffle moves a share of the packets up to by places back. Their times stay
// with them.
func Shuffle(p []Packet, share float64, by int, r *rand.Rand) []Packet {
	p = slices.Clone(p)
	for i := range p {
		if r.Float64() < share {
			j := min(i+1+r.IntN(by), len(p)-1)
			x := p[i]
			copy(p[i:j], p[i+1:j+1])
			p[j] = x
		}
	}
	return p
}

// Restamp gives the packets, in their order, the times they have in order: what
// was late on the wire, not only in the file.
func Restamp(p []Packet) []Packet {
	times := make([]int64, len(p))
	for i := range p {
		times[i] = p[i].Time
	}
	slices.Sort(times)
	p = slices.Clone(p)
	for i := range p {
		p[i].Time = times[i]
	}
	return p
}

// Double captures every packet twice, as a loopback device shows them.
func Double(p []Packet) []Packet {
	var out []Packet
	for _, p := range p {
		q := p
		q.Time += 2e3
		out = append(out, p, q)
	}
	sortPackets(out)
	return out
}

// Source yields the packets.
func Source(p []Packet) frame.Source { return &source{p} }

type source struct{ p []Packet }

func (s *source) Next(p *frame.Packet) error {
	if len(s.p) == 0 {
		return io.EOF
	}
	*p, s.p = s.p[0].Packet, s.p[1:]
	return nil
}

func (s *source) Close() error { return nil }
