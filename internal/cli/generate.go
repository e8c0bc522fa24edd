package cli

import (
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"reprise/internal/build"
)

// Flags that packages and shells call; they stand first on the command line.
const (
	generateFlag = "--generate"
	completeFlag = "--complete"
)

// generate writes what goes beside the program when it is installed.
func generate(app *cli.App, what []string, w io.Writer) error {
	text := ""
	switch strings.Join(what, " ") {
	case "man":
		text = manPage(app)
	case "bash":
		text = bashScript
	case "zsh":
		text = zshScript
	case "fish":
		text = fishScript
	default:
		return Usagef(app.Name+" "+generateFlag+" man", "%s %s: want man, bash, zsh or fish", generateFlag, strings.Join(what, " "))
	}
	_, err := io.WriteString(w, strings.ReplaceAll(text, "PROGRAM", app.Name))
	return err
}

// manPage renders the program and all its commands as one page in the man
// macros, from the same fields as the help text.
func manPage(app *cli.App) string {
	b := build.Read()
	var p page
	date, _, _ := strings.Cut(b.Date, "T")
	p.line(".TH", strings.ToUpper(app.Name), "1", date, "Reprise "+b.Version, "User Commands")
	// Examples and flags are what is typed: no hyphenation, nothing adjusted.
	p.raw(".nh\n.ad l\n")
	p.line(".SH", "NAME")
	about := app.Usage
	h := describe(app.Name, app.UsageText, app.Usage, app.Description)
	if about == "" {
		about = firstSentence(h.text)
	}
	p.raw(roff(app.Name) + ` \- ` + roff(about) + "\n")
	p.line(".SH", "SYNOPSIS")
	p.verbatim(h.form)
	p.line(".SH", "DESCRIPTION")
	p.text(h.text)
	if rows := flagRows(app.Flags); len(rows) > 0 {
		p.line(".SH", "OPTIONS")
		p.flags(rows)
	}
	if len(app.Commands) > 0 {
		p.line(".SH", "COMMANDS")
		p.commands(app.Name, app.Commands)
	}
	after := h.after
	if !strings.Contains(after, "Exit status") {
		after += "\n\n" + defaultExit
	}
	examples, exit := cutExit(after)
	if examples != "" {
		p.line(".SH", "EXAMPLES")
		p.verbatim(strings.Split(examples, "\n"))
	}
	p.line(".SH", "EXIT STATUS")
	p.text(exit)
	return p.String()
}

// cutExit takes the section on the exit status off what follows "Examples:".
func cutExit(after string) (examples, exit string) {
	i := strings.Index(after, "Exit status")
	if i < 0 {
		i = len(after)
	}
	examples = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(after[:i]), "Examples:"))
	return examples, strings.TrimSpace(after[i:])
}

func firstSentence(text string) string {
	s, _, _ := strings.Cut(strings.Join(strings.Fields(text), " "), ". ")
	return strings.TrimSuffix(s, ".")
}

// A page is roff being written.
type page struct{ strings.Builder }

func (p *page) raw(s string) { p.WriteString(s) }

// line writes a macro with its arguments, each in quotes where it has to be.
func (p *page) line(macro string, args ...string) {
	p.WriteString(macro)
	for _, a := range args {
		p.WriteString(` "` + strings.ReplaceAll(roff(a), `"`, `\(dq`) + `"`)
	}
	p.WriteString("\n")
}

// text writes paragraphs. Lines that are indented stay as they are.
func (p *page) text(text string) {
	for i, para := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			p.raw(".PP\n")
		}
		var kept []string
		flush := func() {
			if kept != nil {
				p.verbatim(kept)
				kept = nil
			}
		}
		for l := range strings.SplitSeq(para, "\n") {
			if strings.HasPrefix(l, "  ") {
				kept = append(kept, l)
				continue
			}
			flush()
			p.raw(roff(strings.TrimSpace(l)) + "\n")
		}
		flush()
	}
}

// verbatim writes lines that are not filled.
func (p *page) verbatim(lines []string) {
	p.raw(".nf\n")
	for _, l := range lines {
		p.raw(roff(strings.TrimSpace(l)) + "\n")
	}
	p.raw(".fi\n")
}

func (p *page) flags(rows [][2]string) {
	for _, r := range rows {
		p.raw(".TP\n.B " + roff(r[0]) + "\n" + roff(r[1]) + "\n")
	}
}

func (p *page) commands(parent string, list []*cli.Command) {
	for _, c := range list {
		if c.Hidden {
			continue
		}
		name := parent + " " + c.Name
		h := describe(name, c.UsageText, c.Usage, c.Description)
		p.line(".SS", name)
		p.verbatim(h.form)
		p.raw(".PP\n")
		p.text(h.text)
		p.flags(flagRows(c.Flags))
		if examples, exit := cutExit(h.after); examples+exit != "" {
			p.raw(".PP\n")
			if examples != "" {
				p.raw("Examples:\n.PP\n")
				p.verbatim(strings.Split(examples, "\n"))
			}
			if exit != "" {
				p.raw(".PP\n")
				p.text(exit)
			}
		}
		p.commands(name, c.Subcommands)
	}
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "'", `\(aq`, "^", `\(ha`, "~", `\(ti`,
	"\n", " ", "…", `\&...`, "×", `\(mu`, "µ", `\(mc`, "–", `\(en`)

// roff escapes one line of text. Words too long for a line may break where they
// list something.
func roff(s string) string {
	const long = 40
	words := strings.Split(roffEscapes.Replace(s), " ")
	for i, w := range words {
		if len(w) > long {
			words[i] = strings.NewReplacer(",", `,\:`, "|", `|\:`).Replace(w)
		}
	}
	s = strings.Join(words, " ")
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

// A description is a help text in its parts.
type description struct {
	form        []string // of the command line, a line each
	text, after string   // before and from "Examples:" on
}

func describe(name, form, about, text string) description {
	d := description{text: strings.TrimSpace(text)}
	for l := range strings.SplitSeq(strings.TrimSpace(form), "\n") {
		d.form = append(d.form, strings.TrimSpace(l))
	}
	if form == "" {
		d.form = []string{name + " [flags]"}
	}
	if i := strings.Index("\n"+d.text, "\nExamples:\n"); i >= 0 {
		d.text, d.after = strings.TrimSpace(d.text[:i]), d.text[i:]
	}
	if d.text == "" {
		d.text = about
	}
	return d
}
