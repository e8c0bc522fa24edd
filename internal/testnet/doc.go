//go:build !linux

// Package testnet is for Linux.
package testnet
