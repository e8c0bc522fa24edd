package replay

import (
	"testing"

	"pgregory.net/rapid"
)

// What two servers have in common is within what either takes, whoever is asked
// first, and does not change by being asked again.
func TestCommonTarget(t *testing.T) {
	target := func(t *rapid.T, name string) Target {
		return Target{
			MaxLen: rapid.SampledFrom([]int{0, 2048, 8190, 8192}).Draw(t, name+" context"), MaxPrompt: rapid.SampledFrom([]int{0, 2000, 8185}).Draw(t, name+" prompt"),
			VocabSize: rapid.SampledFrom([]int{0, 400, 16186, 128000}).Draw(t, name+" vocabulary"), MinID: rapid.SampledFrom([]int{0, 3, 1000, 5000}).Draw(t, name+" first id"),
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := target(t, "a"), target(t, "b")
		c := a.Common(b)
		if d := b.Common(a); d != c {
			t.Fatalf("%+v one way, %+v the other", c, d)
		}
		if d := c.Common(a).Common(b).Common(c); d != c {
			t.Fatalf("%+v, and again %+v", c, d)
		}
		for _, s := range []Target{a, b} {
			if s.MaxLen > 0 && (c.MaxLen == 0 || c.MaxLen > s.MaxLen) || s.MaxPrompt > 0 && (c.MaxPrompt == 0 || c.MaxPrompt > s.MaxPrompt) {
				t.Fatalf("%+v is too long for %+v", c, s)
			}
			if s.VocabSize > 0 && c.VocabSize > s.VocabSize || c.MinID < s.MinID && s.MinID < c.VocabSize || c.MinID >= c.VocabSize {
				t.Fatalf("ids from %d to %d are not those of %+v", c.MinID, c.VocabSize, s)
			}
		}
	})
}
