// Package build says which build of the program is running.
//
// A release is stamped by its linker flags, so that it says the same wherever it
// was built: with -X reprise/internal/build.version and, beside it, .revision
// and .date. Any other build says what the Go toolchain found out.
package build

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Set by the linker.
var version, revision, date string

// Info is what is known of a build. Strings that are not known are empty, but
// for Version.
type Info struct {
	Version  string // a tag, a pseudo-version, or "(devel)"
	Revision string // of the commit
	Date     string // of the commit, RFC 3339
	Modified bool   // the tree had changes that are in no commit
	Go       string // of the toolchain
	Platform string // GOOS/GOARCH
	Cgo      bool
}

// Read returns the running program's.
func Read() Info {
	i := Info{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if b, ok := debug.ReadBuildInfo(); ok {
		if b.Main.Version != "" {
			i.Version = b.Main.Version
		}
		for _, s := range b.Settings {
			switch s.Key {
			case "vcs.revision":
				i.Revision = s.Value
			case "vcs.time":
				i.Date = s.Value
			case "vcs.modified":
				i.Modified = s.Value == "true"
			case "CGO_ENABLED":
				i.Cgo = s.Value == "1"
			}
		}
	}
	if version != "" {
		i.Version, i.Revision, i.Date, i.Modified = version, revision, date, strings.HasSuffix(version, "+dirty")
	}
	return i
}
