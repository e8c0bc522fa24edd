// Package objectstore reads and writes traces in object storage, through
// gocloud.dev/blob.
//
// A program gets it with the build tag cloud, which adds the drivers (drivers.go)
// and calls [Register] (cmd/*/cloud.go). The drivers of three clouds are three
// times the size of the rest of a program, so that they are not in the default
// build.
//
// # Reading
//
// An object is read in ranges, those of a row group fetched together. It is
// pinned by its ETag or generation: one that is replaced while it is read is an
// error, and never a mix of two. What fails for a moment is tried again, up to
// five times with growing pauses.
//
// # Writing
//
// What is written lies on the local disk first, where it is checked as every
// trace is, and is then uploaded in parts. An object appears when the last part
// is there, so that neither an error nor a kill leaves half of one.
package objectstore
