package cli

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// helpWidth is a fixed line width, so that the text is the same in a terminal
// and in a file.
const helpWidth = 88

// defaultExit is the last section of a help text that has none of its own.
const defaultExit = "Exit status is 0 if done, 1 if it failed, 2 for a usage error, 130 if interrupted."

// help renders the help text of the program, or of the command at the end of
// path.
func help(app *cli.App, path []*cli.Command) string {
	name, form, about, description, flags, subs := app.Name, app.UsageText, app.Usage, app.Description, app.Flags, app.Commands
	var inherited []cli.Flag
	runs := app.Action != nil
	for _, c := range path {
		if !runs {
			inherited = append(inherited, flags...)
		}
		runs = c.Action != nil
		name += " " + c.Name
		form, about, description, flags, subs = c.UsageText, c.Usage, c.Description, c.Flags, c.Subcommands
	}
	if form == "" && len(subs) > 0 {
		form = name + " COMMAND [flags]"
	}
	d := describe(name, form, about, description)
	var b strings.Builder
	for i, line := range d.form {
		lead := "usage: "
		if i > 0 {
			lead = "       "
		}
		b.WriteString(lead + line + "\n")
	}
	b.WriteString("\n" + d.text + "\n")
	if len(subs) > 0 {
		var rows [][2]string
		for _, c := range subs {
			if !c.Hidden {
				rows = append(rows, [2]string{c.Name, c.Usage})
			}
		}
		section(&b, "Commands", rows)
	}
	rows := flagRows(flags)
	for _, f := range inherited {
		if lookup(flags, f.Names()[0]) == nil {
			rows = append(rows, flagRows([]cli.Flag{f})...)
		}
	}
	section(&b, "Flags", rows)
	if after := strings.TrimSpace(d.after); after != "" {
		b.WriteString("\n" + after + "\n")
	}
	if !strings.Contains(d.after, "Exit status") {
		b.WriteString("\n" + defaultExit + "\n")
	}
	return b.String()
}

func flagRows(flags []cli.Flag) [][2]string {
	var rows [][2]string
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if v, isV := f.(cli.VisibleFlag); !ok || isV && !v.IsVisible() {
			continue
		}
		var short, long []string
		for _, n := range f.Names() {
			if len(n) == 1 {
				short = append(short, "-"+n)
			} else {
				long = append(long, "--"+n)
			}
		}
		placeholder, usage := unquoteUsage(d.GetUsage())
		left := strings.Join(append(short, long...), ", ")
		if d.TakesValue() {
			if placeholder == "" {
				placeholder = "VALUE"
			}
			left += " " + placeholder
			if def := defaultText(f, d); def != "" {
				usage += " (default " + def + ")"
			}
		}
		if s, ok := f.(cli.DocGenerationSliceFlag); ok && s.IsSliceFlag() {
			usage += "; may be repeated"
		}
		rows = append(rows, [2]string{left, usage})
	}
	return rows
}

// defaultText is the default worth showing: a zero says nothing that the text
// of the flag does not say better.
func defaultText(f cli.Flag, d cli.DocGenerationFlag) string {
	switch v := f.(type) {
	case *cli.StringFlag:
		if v.DefaultText != "" {
			return v.DefaultText
		}
		return v.Value
	case *cli.DurationFlag:
		if v.DefaultText == "" && v.Value == 0 {
			return ""
		}
	}
	switch s := strings.Trim(d.GetDefaultText(), `"`); s {
	case "0", "0s", "false", "[]":
		return ""
	default:
		return s
	}
}

// unquoteUsage takes the placeholder out of a usage line: it is the part in
// back quotes.
func unquoteUsage(usage string) (placeholder, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return "", usage
	}
	placeholder, after, ok := strings.Cut(rest, "`")
	if !ok {
		return "", usage
	}
	return placeholder, before + placeholder + after
}

// section writes rows of two columns, the second wrapped.
func section(b *strings.Builder, title string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	const widest = 26
	left := 0
	for _, r := range rows {
		if len(r[0]) <= widest {
			left = max(left, len(r[0]))
		}
	}
	fmt.Fprintf(b, "\n%s:\n", title)
	for _, r := range rows {
		lead := fmt.Sprintf("  %-*s  ", left, r[0])
		if len(r[0]) > left {
			b.WriteString("  " + r[0] + "\n")
			lead = strings.Repeat(" ", left+4)
		}
		for i, line := range wrap(r[1], helpWidth-left-4) {
			if i > 0 {
				lead = strings.Repeat(" ", left+4)
			}
			b.WriteString(strings.TrimRight(lead+line, " ") + "\n")
		}
	}
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
