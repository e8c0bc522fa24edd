package cli

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// A candidate is a word that could stand where the cursor is.
type candidate struct {
	word, about string
}

// complete returns what the last of words could become; the others stand before
// it, without the name of the program. files says that a file could stand there
// as well. It reads words as parse does.
func complete(app *cli.App, words []string) (list []candidate, files bool) {
	if len(words) == 0 {
		words = []string{""}
	}
	levels := []*level{{name: app.Name, flags: app.Flags, subs: app.Commands, runs: app.Action != nil}}
	var waiting cli.Flag // its value comes next
	literal, helpVerb, positionals := false, false, 0
	for _, w := range words[:len(words)-1] {
		top := levels[len(levels)-1]
		switch {
		case waiting != nil:
			waiting = nil
		case literal:
			positionals++
		case w == "--":
			literal = true
		case isFlag(w) && !(isNumber(w) && find(levels, w) == nil):
			name, _, hasValue := strings.Cut(strings.TrimLeft(w, "-"), "=")
			if owner := find(levels, name); owner != nil && !hasValue {
				if f := lookup(owner.flags, name); takesValue(f) {
					waiting = f
				}
			}
		default:
			c := command(top.subs, w)
			switch {
			case positionals == 0 && c != nil:
				levels = append(levels, &level{name: top.name + " " + c.Name, flags: c.Flags, subs: c.Subcommands, runs: c.Action != nil})
			case positionals == 0 && w == "help" && len(top.subs) > 0:
				helpVerb = true
			default:
				positionals++
			}
		}
	}
	last, top := words[len(words)-1], levels[len(levels)-1]
	add := func(word, about string) {
		if strings.HasPrefix(word, last) {
			list = append(list, candidate{word, about})
		}
	}
	if waiting != nil {
		for _, v := range choices(waiting) {
			add(v, "")
		}
		return list, len(list) == 0
	}
	if !literal && isFlagPrefix(last) {
		if name, _, ok := strings.Cut(last, "="); ok {
			owner := find(levels, name)
			if owner == nil {
				return nil, false
			}
			for _, v := range choices(lookup(owner.flags, strings.TrimLeft(name, "-"))) {
				add(name+"="+v, "")
			}
			return list, len(list) == 0
		}
		for i, l := range slices.Backward(levels) {
			if l.runs && i < len(levels)-1 {
				continue // as find does
			}
			for _, f := range l.flags {
				d, ok := f.(cli.DocGenerationFlag)
				if v, isV := f.(cli.VisibleFlag); !ok || isV && !v.IsVisible() {
					continue
				}
				_, about := unquoteUsage(d.GetUsage())
				for _, n := range f.Names() {
					add(withDashes(n), about)
				}
			}
		}
		add("--help", "how it is used")
		add("--version", "which build this is")
		return list, false
	}
	if !literal && positionals == 0 {
		for _, c := range top.subs {
			if !c.Hidden {
				add(c.Name, c.Usage)
			}
		}
		if len(levels) == 1 && len(top.subs) > 0 && !helpVerb {
			add("help", "how a command is used")
		}
	}
	return list, (top.runs || literal) && !helpVerb
}

// isFlagPrefix reports whether a word that is being written will be a flag.
func isFlagPrefix(w string) bool { return w == "-" || isFlag(w) && !isNumber(w) }

// choices are the values of f where its usage names them: "`warm|cold|salt`".
func choices(f cli.Flag) []string {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return nil
	}
	if placeholder, _ := unquoteUsage(d.GetUsage()); strings.Contains(placeholder, "|") {
		return strings.Split(placeholder, "|")
	}
	return nil
}

// writeCompletions answers the script of a shell: a candidate a line, after a
// tab what it is. A line ":files" says that files could stand there as well.
func writeCompletions(app *cli.App, words []string, w io.Writer) error {
	list, files := complete(app, words)
	b := bufio.NewWriter(w)
	for _, c := range list {
		fmt.Fprintf(b, "%s\t%s\n", c.word, c.about)
	}
	if files {
		b.WriteString(":files\n")
	}
	return b.Flush()
}

// The scripts of the shells. Each asks the program, with PROGRAM in the place
// of its name.
const (
	bashScript = `# bash completion for PROGRAM

_PROGRAM() {
  # Bash breaks words at = and :, the program does not: take the line apart anew.
  local line=${COMP_LINE:0:COMP_POINT} cur=${COMP_WORDS[COMP_CWORD]} words word head
  read -ra words <<<"$line"
  case $line in *[[:space:]]) words+=("") ;; esac
  word=${words[${#words[@]}-1]}
  case $cur in = | :) cur= ;; esac
  head=${word%"$cur"}
  COMPREPLY=()
  local answer
  while IFS= read -r answer; do
    if [ "$answer" = :files ]; then
      compopt -o filenames 2>/dev/null
      while IFS= read -r answer; do COMPREPLY+=("$answer"); done < <(compgen -f -- "$cur")
    else
      answer=${answer%%$'\t'*}
      COMPREPLY+=("${answer#"$head"}")
    fi
  done < <("${words[0]}" --complete "${words[@]:1}" 2>/dev/null)
}

complete -F _PROGRAM PROGRAM
`
	zshScript = `#compdef PROGRAM
# zsh completion for PROGRAM

_PROGRAM() {
  local line word files=
  local -a found
  for line in "${(@f)$(${words[1]} --complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
    case $line in
      '') ;;
      :files) files=1 ;;
      *) word=${line%%$'\t'*}; found+=("${word//:/\\:}:${line#*$'\t'}") ;;
    esac
  done
  (( $#found )) && _describe -t values PROGRAM found
  if [[ -n $files ]]; then
    [[ $PREFIX = -*=* ]] && compset -P 1 '*='
    _files
  fi
}

if [[ $funcstack[1] = _PROGRAM ]]; then
  _PROGRAM "$@"
else
  compdef _PROGRAM PROGRAM
fi
`
	fishScript = `# fish completion for PROGRAM

function __PROGRAM_complete
  set -l words (commandline -opc)
  set -l current (commandline -ct)
  for answer in ($words[1] --complete $words[2..-1] "$current" 2>/dev/null)
    if test "$answer" = :files
      __fish_complete_path "$current"
    else
      echo $answer
    end
  end
end

complete -c PROGRAM -f -a '(__PROGRAM_complete)'
`
)
