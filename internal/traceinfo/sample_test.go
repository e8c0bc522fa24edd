package traceinfo

import (
	"math"
	"math/rand/v2"
	"testing"

	"reprise/traceformat"
)

// workload makes prompts of shared prefixes of which some are used much more
// than others, with continued conversations and tails of their own.
func workload(seed uint64, n int, roots int, skew float64) [][]uint64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	zipf := rand.NewZipf(rng, skew, 4, uint64(roots-1))
	prompts := make([][]uint64, 0, n)
	var talks [][]uint64
	for range n {
		if len(talks) > 0 && rng.IntN(3) == 0 {
			k := rng.IntN(len(talks))
			talks[k] = append(talks[k][:len(talks[k]):len(talks[k])], rng.Uint64(), rng.Uint64())
			prompts = append(prompts, talks[k])
			continue
		}
		root := zipf.Uint64()
		var p []uint64
		for b := range 1 + root%12 {
			p = append(p, seed<<40|root<<8|b)
		}
		for range rng.IntN(8) {
			p = append(p, rng.Uint64())
		}
		if len(talks) < 2000 {
			talks = append(talks, p)
		} else {
			talks[rng.IntN(len(talks))] = p
		}
		prompts = append(prompts, p)
	}
	return prompts
}

// The intervals of sampled hit shares hold the share that following every block
// gives, as often as they should, from the first row on and from the middle.
func TestSampledHitShares(t *testing.T) {
	held, all := 0, 0
	for seed := range uint64(24) {
		prompts := workload(seed+1, 30_000, []int{50, 3000, 40_000}[seed%3], []float64{1.05, 1.3, 2}[seed/3%3])
		exact := newPrefixSampler(cacheSizes, -1)
		got := newPrefixSampler(cacheSizes, []int64{0, 10_000}[seed%2])
		for _, p := range prompts {
			exact.add(p)
			got.add(p)
		}
		blocks, distinct := exact.counts()
		gotBlocks, gotDistinct := got.counts()
		if gotBlocks != blocks || math.Abs(float64(gotDistinct)/float64(distinct)-1) > 0.1 {
			t.Errorf("seed %d: %d blocks, %d distinct, want %d and about %d", seed, gotBlocks, gotDistinct, blocks, distinct)
		}
		sharing, deeper := exact.rowsSharing()
		gotSharing, gotDeeper := got.rowsSharing()
		if n := float64(len(prompts)); math.Abs(float64(gotSharing-sharing)) > 0.05*n || math.Abs(float64(gotDeeper-deeper)) > 0.05*n {
			t.Errorf("seed %d: %d rows share, %d more than a block, want about %d and %d", seed, gotSharing, gotDeeper, sharing, deeper)
		}
		for i := range exact.c.hits {
			want, _ := exact.share(i)
			share, margin := got.share(i)
			all++
			if math.Abs(share-want) <= margin {
				held++
			} else {
				t.Logf("seed %d, size %d: %.4f ± %.4f, is %.4f", seed, i, share, margin, want)
			}
			// 100 blocks are 6 of the sample: that interval is wide.
			if far := []float64{0.15, 0.05}[min(i, 1)]; math.Abs(share-want) > far {
				t.Errorf("seed %d, size %d: %.4f, want about %.4f", seed, i, share, want)
			}
		}
	}
	t.Logf("%d of %d intervals hold the share", held, all)
	if float64(held) < 0.88*float64(all) {
		t.Errorf("%d of %d intervals hold the share, want 95 %%", held, all)
	}
}

// A trace that is known to be long is sampled from its start and says so; with
// exact nothing is.
func TestAnalyzeSamplesLongTraces(t *testing.T) {
	m := &memory{h: traceformat.Header{Rows: traceformat.Counts{Recorded: sampleFrom + 1}, Blocks: traceformat.Blocks{Size: 16}}}
	for i, p := range workload(1, 2000, 50, 1.3) {
		m.rows = append(m.rows, traceformat.Row{Request: traceformat.Request{ID: int64(i), PrefixBlocks: p}})
	}
	if in := analyzed(t, m); in.Prefix.Sample == nil || in.Prefix.Sample.Rate != sampleRate || in.Prefix.Hits[0].Margin == 0 {
		t.Errorf("prefix of a long trace: %+v", in.Prefix)
	}
	in, err := Analyze(t.Context(), m, true)
	if err != nil {
		t.Fatal(err)
	}
	if in.Prefix.Sample != nil || in.Prefix.Hits[0].Margin != 0 {
		t.Errorf("exact prefix of a long trace: %+v", in.Prefix)
	}
}
