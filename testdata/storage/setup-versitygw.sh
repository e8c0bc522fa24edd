#!/usr/bin/env bash
# Builds versitygw (Apache-2.0), the S3 server of the tests of internal/objectstore,
# from the Go module proxy. It is no dependency of this module.
set -euo pipefail
tools=${XDG_CACHE_HOME:-$HOME/.cache}/reprise/versitygw
version=v1.8.0
mkdir -p "$tools"
if [ -x "$tools/versitygw" ] && go version -m "$tools/versitygw" | grep -q "versitygw.*$version"; then
  exit 0
fi
GOBIN=$tools CGO_ENABLED=0 GOFLAGS=-trimpath go install "github.com/versity/versitygw/cmd/versitygw@$version"
