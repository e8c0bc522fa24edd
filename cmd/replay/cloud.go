//go:build cloud

package main

import (
	"reprise/internal/objectstore"
	"reprise/internal/traceout"
)

// s3://, gs:// and azblob:// names are read, and written where a trace is.
func init() {
	objectstore.Register()
	traceout.RegisterStore(objectstore.Store{})
}
