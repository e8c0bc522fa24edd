package cli

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// parsed is a command line in the order that urfave/cli wants: flags of the
// program, subcommand, its flags, ..., "--", positionals.
type parsed struct {
	args          []string
	path          []*cli.Command // chosen subcommands, outermost first
	help, version bool
	program       string
	flags         []cli.Flag // of every level, innermost first
}

// A level is the program or one of the subcommands on the path.
type level struct {
	name  string
	flags []cli.Flag
	subs  []*cli.Command
	runs  bool     // has an action of its own
	out   []string // "--name=value" of the flags that belong here
	given []cli.Flag
}

func parse(app *cli.App, args []string) (*parsed, error) {
	p := &parsed{program: app.Name}
	levels := []*level{{name: app.Name, flags: app.Flags, subs: app.Commands, runs: app.Action != nil}}
	var positionals []string
	literal := false // past "--"
	helpVerb := false
	for i := 0; i < len(args); i++ {
		arg := args[i]
		top := levels[len(levels)-1]
		switch {
		case !literal && arg == "--":
			literal = true
			continue
		case literal || !isFlag(arg) || isNumber(arg) && find(levels, arg) == nil:
			if !literal && len(positionals) == 0 {
				if c := command(top.subs, arg); c != nil {
					p.path = append(p.path, c)
					next := &level{name: top.name + " " + c.Name, flags: c.Flags, subs: c.Subcommands, runs: c.Action != nil}
					levels = append(levels, next)
					// A flag that came before the subcommand and that the
					// subcommand declares too is meant for the subcommand.
					if err := top.handDown(next); err != nil {
						return nil, err
					}
					continue
				}
				if arg == "help" && len(top.subs) > 0 && !helpVerb {
					helpVerb = true
					continue
				}
				if err := p.unknownCommand(top, arg, helpVerb); err != nil {
					return nil, err
				}
			}
			// urfave/cli would look for a subcommand of this name.
			if len(positionals) == 0 && command(top.subs, arg) != nil {
				arg = "./" + arg
			}
			positionals = append(positionals, arg)
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		owner := find(levels, name)
		if owner == nil {
			switch name {
			case "help", "h":
				p.help = true
				continue
			case "version":
				p.version = true
				continue
			}
			return nil, p.unknownFlag(levels, arg, name)
		}
		f := lookup(owner.flags, name)
		if !hasValue {
			switch {
			case !takesValue(f):
				value = "true"
			case i+1 == len(args) || isFlag(args[i+1]) && !isNumber(args[i+1]) && (args[i+1] == "--" || find(levels, flagName(args[i+1])) != nil):
				return nil, Usagef(fmt.Sprintf("%s --help", top.name), "%s needs a value", dashed(f))
			default:
				i++
				value = args[i]
			}
		}
		owner.out = append(owner.out, "--"+f.Names()[0]+"="+value)
		owner.given = append(owner.given, f)
	}

	top := levels[len(levels)-1]
	if helpVerb {
		p.help = true
	}
	if !p.help && !p.version && !top.runs && len(positionals) == 0 {
		return nil, Usagef(top.name+" --help", "no command, want one of %s", strings.Join(commandNames(top.subs), ", "))
	}
	for i, l := range levels {
		if i > 0 {
			p.args = append(p.args, p.path[i-1].Name)
		}
		p.args = append(p.args, l.out...)
		p.flags = append(slices.Clone(l.flags), p.flags...)
	}
	if len(positionals) > 0 {
		p.args = append(append(p.args, "--"), positionals...)
	}
	return p, nil
}

// handDown moves the flags given so far that next declares too.
func (l *level) handDown(next *level) error {
	out, given := l.out, l.given
	l.out, l.given = nil, nil
	for i, f := range given {
		name := f.Names()[0]
		if g := lookup(next.flags, name); g != nil && takesValue(g) == takesValue(f) {
			_, value, _ := strings.Cut(out[i], "=")
			next.out = append(next.out, "--"+g.Names()[0]+"="+value)
			next.given = append(next.given, g)
			continue
		}
		if l.runs {
			return Usagef(next.name+" --help", "%s is not a flag of %s", dashed(f), next.name)
		}
		l.out, l.given = append(l.out, out[i]), append(l.given, f)
	}
	return nil
}

// isFlag reports whether arg looks like a flag. "-" is standard input.
func isFlag(arg string) bool { return len(arg) > 1 && arg[0] == '-' }

func isNumber(arg string) bool {
	_, err := strconv.ParseFloat(arg, 64)
	return err == nil && arg[len(arg)-1] >= '0' && arg[len(arg)-1] <= '9'
}

func flagName(arg string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return name
}

// find returns the innermost level that declares the flag. The flags of an
// outer level that runs on its own are not those of its subcommands: nobody
// would read them there.
func find(levels []*level, name string) *level {
	name = strings.TrimLeft(name, "-")
	for i, l := range slices.Backward(levels) {
		if l.runs && i < len(levels)-1 {
			continue
		}
		if lookup(l.flags, name) != nil {
			return l
		}
	}
	return nil
}

func lookup(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return !ok || d.TakesValue()
}

// dashed is the flag as a person writes it.
func dashed(f cli.Flag) string {
	names := f.Names()
	if len(names) > 1 && len(names[0]) == 1 {
		return "-" + names[0]
	}
	return withDashes(names[0])
}

func withDashes(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func command(subs []*cli.Command, name string) *cli.Command {
	for _, c := range subs {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func commandNames(subs []*cli.Command) []string {
	var names []string
	for _, c := range subs {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return names
}

func (p *parsed) unknownFlag(levels []*level, arg, name string) error {
	var known []string
	for i, l := range levels {
		if l.runs && i < len(levels)-1 {
			continue
		}
		for _, f := range l.flags {
			if v, ok := f.(cli.VisibleFlag); !ok || v.IsVisible() {
				known = append(known, f.Names()...)
			}
		}
	}
	top := levels[len(levels)-1]
	hint := top.name + " --help"
	if s := closest(name, append(known, "help", "version")); s != "" {
		hint = fmt.Sprintf("did you mean %s?", withDashes(s))
	} else if len(p.path) == 0 && len(top.subs) > 0 {
		hint = "flags of a command come after its name: " + hint
	}
	flag, _, _ := strings.Cut(arg, "=")
	return Usagef(hint, "unknown flag %s", flag)
}

// unknownCommand reports a first word that is no subcommand, where it cannot
// be anything else. A program that takes files as well as subcommands is given
// the benefit of the doubt, unless the word is a slip of the pen of a
// subcommand and no such file is there.
func (p *parsed) unknownCommand(l *level, arg string, helpVerb bool) error {
	if len(l.subs) == 0 {
		return nil
	}
	names := commandNames(l.subs)
	s := closest(arg, names)
	if l.runs && !helpVerb {
		if s == "" || strings.ContainsAny(arg, "./:\\") {
			return nil
		}
		if _, err := os.Stat(arg); err == nil {
			return nil
		}
		return Usagef(fmt.Sprintf("did you mean %s? a file of that name is written ./%s", s, arg), "no file and no command %q", arg)
	}
	hint := "the commands are " + strings.Join(names, ", ")
	if s != "" {
		hint = fmt.Sprintf("did you mean %s?", s)
	}
	return Usagef(hint, "unknown command %q", arg)
}

// usageError turns what package flag says into our words.
func (p *parsed) usageError(_ *cli.Context, err error, _ bool) error {
	m := badValue.FindStringSubmatch(err.Error())
	if m == nil {
		return &Error{Code: Usage, Err: err}
	}
	value, uerr := strconv.Unquote(m[1])
	if uerr != nil {
		value = m[1]
	}
	f := lookup(p.flags, m[2])
	want := m[3]
	switch f.(type) {
	case *cli.BoolFlag:
		want = "want true or false"
	case *cli.DurationFlag:
		want = "want a duration such as 500ms, 10s or 1h30m"
	case *cli.Float64Flag, *cli.Float64SliceFlag:
		want = "want a number"
	case *cli.IntFlag, *cli.Int64Flag, *cli.IntSliceFlag, *cli.Int64SliceFlag:
		want = "want a whole number"
	case *cli.UintFlag, *cli.Uint64Flag:
		want = "want a whole number, 0 or more"
	}
	name := withDashes(m[2])
	if f != nil {
		name = dashed(f)
	}
	return &Error{Code: Usage, Err: errors.New(name + " " + strconv.Quote(value) + ": " + want)}
}

var badValue = regexp.MustCompile(`(?s)^invalid (?:boolean )?value ("(?:[^"\\]|\\.)*") for(?: flag)? -?([^\s:]+): (.*)$`)

// closest returns the candidate that word is most likely a misspelling of, or
// "".
func closest(word string, candidates []string) string {
	best, bestAt := "", len(word)/3+1
	for _, c := range candidates {
		if len(c) < 2 {
			continue
		}
		d := distance(word, c)
		if len(word) >= 3 && strings.HasPrefix(c, word) {
			d = 0
		}
		if d < bestAt || d == bestAt && best == "" {
			best, bestAt = c, d
		}
	}
	return best
}

// distance counts insertions, deletions, substitutions and swaps of
// neighbours.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64 // not a misspelling, and not worth the time
	}
	var before, prev, cur [65]int
	for j := range len(b) + 1 {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev = prev, cur
	}
	return prev[len(b)]
}
