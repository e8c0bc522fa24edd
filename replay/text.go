package replay

import "strings"

// A textWriter writes a prompt as text, for servers that take no token ids.
// The vocabulary of such a plan is a list of words, so that prefixes are shared
// and parted word by word.
type textWriter struct{ b strings.Builder }

func (t *textWriter) write(w *Words, ids []uint32) string {
	t.b.Reset()
	t.b.Grow(7 * len(ids))
	for i, id := range ids {
		if i > 0 || !w.NoSpace {
			t.b.WriteByte(' ')
		}
		t.b.WriteString(w.list[id])
	}
	return t.b.String()
}

// candidates are words to try at a server's tokenizer: common ones, as they are,
// with a capital and with endings, and all strings of up to three letters, of
// which large vocabularies have thousands. The order is fixed.
func candidates() []string {
	var all []string
	seen := map[string]bool{}
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			all = append(all, s)
		}
	}
	for _, w := range common {
		add(w)
		add(strings.ToUpper(w[:1]) + w[1:])
		for _, ending := range [...]string{"s", "d", "ed", "r", "er", "ing", "ly", "al"} {
			add(w + ending)
		}
	}
	var grow func(prefix string)
	grow = func(prefix string) {
		for c := 'a'; c <= 'z'; c++ {
			add(prefix + string(c))
			if len(prefix) < 2 {
				grow(prefix + string(c))
			}
		}
	}
	grow("")
	return all
}

// common are English words that are one token each, with the space before them,
// in the usual byte-level BPE vocabularies.
var common = strings.Fields(`
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were
all her she there would their we him been has when who will no more if out so up said what its about than into them can only
other time new some could these two may first then do any like my now over such our man me even most made after also did many
off before must well back through years much where your way down should because long each just state those people too mean
how little good world very still see men work life own under last right being three year old between never use while same
another know house might great go public come hand day part high against place around few number night water home small
without left until head again thought school something system fact money though less government need think every does course
point upon form world side got found took group end want second set line case full early light face local real best told
half name really large big next land power open kind order hard area seen city above whole problem nothing felt gave change
question voice history town job center seem toward together keep start field hear study body human turn show white family
word letter mother father woman child country company service party young example young table program market policy process
`)
