// Package cli is the command line of every program here: urfave/cli/v2 with
// the parts that it gets wrong, or prints where it should not, put right.
//
// A program declares a [cli.App] and ends with
//
//	func main() { os.Exit(cli.Main(app(), os.Args, os.Stdout, os.Stderr)) }
//
// # Arguments
//
// Flags may stand anywhere: before, between and after positionals, and before
// or after a subcommand. (urfave/cli/v2 on its own takes a flag after the first
// positional for an argument, without a word.) A word that is not a subcommand,
// or that comes after "--", is an argument; a file named like a subcommand is
// written ./search. "-" and negative numbers are arguments. A flag may be given
// more than once: a list keeps all values, anything else the last. Commas in a
// value mean nothing.
//
// # Help
//
// Usage is the one line shown in the list of commands and UsageText the form of
// the command line. Description is the text; from its line "Examples:" on it
// is printed after the flags.
//
// # Manual and completion
//
// Every program writes its own: "replay --generate man", and bash, zsh or fish
// for the completion of that shell. A completion asks the program at each TAB
// ("replay --complete WORD..."), so that it knows what the parser knows. Both
// flags stand first and are in no help text: packages call them, not people.
//
// # Output
//
// Data goes to the App's Writer, diagnostics to its ErrWriter. Actions return
// errors and never print them: Main prints "program: what" and, from an
// [*Error], "hint: next step", and turns the error into the exit status.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"reprise/internal/build"
)

// Exit statuses.
const (
	Done        = 0
	Failed      = 1   // the run or the check failed
	Usage       = 2   // the command line is wrong
	Invalid     = 3   // done, but the result is not valid (fidelity)
	Interrupted = 130 // stopped by a signal; partial results are kept
)

// An Error carries an exit status and the next step to take.
type Error struct {
	Code int
	Err  error  // nil prints nothing: all there is to say was said
	Hint string // a command line or a sentence, may be empty
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Usagef is an error in how the command was called.
func Usagef(hint, format string, args ...any) error {
	return &Error{Code: Usage, Err: fmt.Errorf(format, args...), Hint: hint}
}

// Main runs app on args (args[0] is the program) and returns the exit status:
// that of an [*Error], Interrupted for [context.Canceled], Failed for other
// errors.
func Main(app *cli.App, args []string, stdout, stderr io.Writer) int {
	app.Writer, app.ErrWriter = stdout, stderr
	err := run(app, args, stdout)
	if err == nil {
		return Done
	}
	e := &Error{Code: Failed, Err: err}
	if own, ok := errors.AsType[*Error](err); ok {
		e.Code, e.Hint = own.Code, own.Hint
		if own.Err == nil {
			return own.Code
		}
	} else if errors.Is(err, context.Canceled) {
		e.Code, e.Err = Interrupted, errors.New("interrupted")
	}
	for line := range strings.Lines(e.Err.Error()) {
		fmt.Fprintf(stderr, "%s: %s\n", app.Name, strings.TrimRight(line, "\n"))
	}
	if e.Hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", e.Hint)
	}
	return e.Code
}

func run(app *cli.App, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		args = []string{app.Name}
	}
	if len(args) > 1 {
		switch args[1] {
		case generateFlag:
			return generate(app, args[2:], stdout)
		case completeFlag:
			return writeCompletions(app, args[2:], stdout)
		}
	}
	p, err := parse(app, args[1:])
	if err != nil {
		return err
	}
	if p.help {
		_, err := io.WriteString(stdout, help(app, p.path))
		return err
	}
	if p.version {
		_, err := io.WriteString(stdout, versionLine(app))
		return err
	}
	// What urfave/cli would print or decide on its own is switched off.
	app.HideHelp, app.HideVersion = true, true
	app.DisableSliceFlagSeparator = true
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = p.usageError
	for _, c := range app.Commands {
		quiet(c, p.usageError)
	}
	return app.Run(append([]string{args[0]}, p.args...))
}

func quiet(c *cli.Command, onUsageError cli.OnUsageErrorFunc) {
	c.HideHelp, c.OnUsageError = true, onUsageError
	for _, s := range c.Subcommands {
		quiet(s, onUsageError)
	}
}

// Version is the version of the running program: a tag, or a pseudo-version with
// commit and "+dirty".
func Version() string { return build.Read().Version }

// NVML is the key of [cli.App] Metadata that says whether a program which may
// have NVML in it has.
const NVML = "nvml"

// versionLine is what --version prints: program, version, commit, toolchain,
// platform, and what kind of build it is.
func versionLine(app *cli.App) string {
	b := build.Read()
	words := []string{app.Name, b.Version}
	var commit []string
	if b.Revision != "" {
		commit = append(commit, "commit "+b.Revision[:min(12, len(b.Revision))])
	}
	if b.Date != "" {
		commit = append(commit, b.Date)
	}
	if b.Modified {
		commit = append(commit, "modified")
	}
	if len(commit) > 0 {
		words = append(words, "("+strings.Join(commit, ", ")+")")
	}
	words = append(words, b.Go, b.Platform)
	if b.Cgo {
		words = append(words, "cgo")
	} else {
		words = append(words, "static")
	}
	if has, ok := app.Metadata[NVML].(bool); ok {
		words = append(words, map[bool]string{true: "nvml", false: "no-nvml"}[has])
	}
	return strings.Join(words, " ") + "\n"
}
