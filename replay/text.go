package replay

import "strings"

// A textWriter writes a prompt as text, for servers that take no token ids.
// The vocabulary of such a plan is a list of words, so that prefixes are shared
// and parted word by word. The words are common enough to be one
// token each, with the space before them, in the usual byte-level BPE
// vocabularies; what the server counts is compared with what was asked.
type textWriter struct{ b strings.Builder }

func (w *textWriter) write(ids []uint32) string {
	w.b.Reset()
	w.b.Grow(6 * len(ids))
	for _, id := range ids {
		w.b.WriteByte(' ')
		w.b.WriteString(words[id])
	}
	return w.b.String()
}

var words = strings.Fields(`
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
