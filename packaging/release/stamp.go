package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
)

// A stamp is what a release says of itself.
type stamp struct {
	version  string // v1.2.0, or a pseudo-version; "+dirty" if the tree has changes
	revision string // of the commit, empty outside of a repository
	date     time.Time
}

// readStamp takes the version from the tags of the commit in root, unless it is
// given, and the time from the commit, unless SOURCE_DATE_EPOCH is set.
func readStamp(root, version string) (stamp, error) {
	s := stamp{version: version}
	if version != "" && !semver.IsValid(version) {
		return s, fmt.Errorf("-version %s: want a semantic version such as v1.2.0", version)
	}
	git := func(args ...string) (string, error) {
		cmd := exec.Command("git", args...)
		cmd.Dir = root
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	head, err := git("log", "-1", "--format=%H %ct")
	if err == nil {
		revision, unix, _ := strings.Cut(head, " ")
		seconds, err := strconv.ParseInt(unix, 10, 64)
		if err != nil {
			return s, fmt.Errorf("git log gave %q", head)
		}
		s.revision, s.date = revision, time.Unix(seconds, 0).UTC()
	}
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return s, fmt.Errorf("SOURCE_DATE_EPOCH is %q, want seconds since 1970", epoch)
		}
		s.date = time.Unix(seconds, 0).UTC()
	}
	if s.date.IsZero() {
		return s, fmt.Errorf("%s is no git repository: set SOURCE_DATE_EPOCH and -version", root)
	}
	if s.version == "" {
		if s.revision == "" {
			return s, fmt.Errorf("%s is no git repository: which -version?", root)
		}
		if s.version, err = git("describe", "--tags", "--exact-match", "--match", "v[0-9]*"); err != nil {
			older, _ := git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*") // none: ""
			s.version = module.PseudoVersion(semver.Major(older), older, s.date, s.revision[:12])
		}
	}
	if changes, err := git("status", "--porcelain"); err == nil && changes != "" {
		s.version += "+dirty"
	}
	return s, nil
}

// packageVersion is the version as Debian and RPM compare it: a pre-release
// comes before the release ("~"), and no dash is in it.
func packageVersion(v string) string {
	v = strings.TrimPrefix(v, "v")
	dirty := strings.HasSuffix(v, "+dirty")
	v = strings.TrimSuffix(v, "+dirty")
	release, pre, _ := strings.Cut(v, "-")
	if pre != "" {
		release += "~" + strings.ReplaceAll(pre, "-", ".")
	}
	if dirty {
		release += "+dirty"
	}
	return release
}

// fileVersion is the version in the names of files.
func (s stamp) fileVersion() string {
	return strings.ReplaceAll(strings.TrimPrefix(s.version, "v"), "+", "-")
}
