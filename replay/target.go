package replay

import "cmp"

// Common returns a target that both servers can take: prompts that are planned
// for it are the same, token for token, at either.
func (t Target) Common(u Target) Target {
	c := Target{
		MaxLen: least(t.MaxLen, u.MaxLen), MaxPrompt: least(t.MaxPrompt, u.MaxPrompt),
		VocabSize: min(cmp.Or(t.VocabSize, defaultVocab), cmp.Or(u.VocabSize, defaultVocab)),
		Text:      t.Text && u.Text,
	}
	// What a server does not say is settled as it would be for that server alone.
	c.MinID = int(max(vocabulary(c.VocabSize, t.MinID).Low, vocabulary(c.VocabSize, u.MinID).Low))
	return c
}

// least is the lesser of two bounds, of which 0 is none.
func least(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
