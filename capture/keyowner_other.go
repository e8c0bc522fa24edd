//go:build !unix

package capture

import "io/fs"

// fromRoot is false where files have no owner that is known here.
func fromRoot(fs.FileInfo) bool { return false }
