// Package reprise is the root of the module: see README.md for what it does
// and ARCHITECTURE.md for where things are.
package reprise
