package proxylog

import (
	"bytes"
	"errors"
	"fmt"
)

// A textFormat is a log_format of text: variables and what stands between them.
type textFormat struct {
	parts []textPart
}

type textPart struct {
	before []byte   // what stands before it
	bind   *binding // nil: of no interest
}

func newTextFormat(format string, variables map[string]binding) (*textFormat, error) {
	f := &textFormat{}
	var before []byte
	found := 0
	for s := format; s != ""; {
		if name, rest := variableAt(s); name != "" {
			if len(before) == 0 && len(f.parts) > 0 {
				return nil, fmt.Errorf("--log-format: nothing stands between $%s and the variable before it", name)
			}
			part := textPart{before: before}
			if b, ok := variables[name]; ok {
				part.bind = &b
				found++
			}
			f.parts = append(f.parts, part)
			before, s = nil, rest
			continue
		}
		before = append(before, s[0])
		s = s[1:]
	}
	if found == 0 {
		return nil, errors.New("--log-format: no variable in it that says anything of a request")
	}
	f.parts = append(f.parts, textPart{before: before})
	return f, nil
}

// parse cuts a line at what stands between the variables.
func (f *textFormat) parse(line []byte, r *record) error {
	var open *binding
	begun := false
	for i := range f.parts {
		p := &f.parts[i]
		j := bytes.Index(line, p.before)
		if len(p.before) == 0 && begun {
			j = len(line) // the last variable runs to the end
		}
		if j < 0 || !begun && j > 0 {
			return errShort
		}
		if open != nil {
			r.put(open, line[:j], false)
		}
		line = line[min(len(line), j+len(p.before)):]
		open, begun = p.bind, true
	}
	return nil
}
