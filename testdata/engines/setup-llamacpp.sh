#!/usr/bin/env bash
# Installs llama.cpp's server (the xllamacpp package) and a tiny model with
# random weights into the user's cache folder. Prints where. Seconds, 0.3 GB.
set -euo pipefail
cd "$(dirname "$0")/../.."
shared=${REPRISE_SHARED:-../shared}
cache=${REPRISE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reprise}
engines=$shared/engines
if [ ! -f "$engines/make_tiny_model.py" ]; then
  echo "no engine scripts in \$REPRISE_SHARED/engines" >&2
  exit 1
fi
mkdir -p "$cache"
if ! "$cache/tools/bin/python" -c 'import xllamacpp, gguf, tokenizers' 2>/dev/null; then
  python3 -m venv "$cache/tools"
  "$cache/tools/bin/pip" -q install tokenizers numpy safetensors gguf==0.19.0 xllamacpp==2026.10.11549
fi
if [ ! -f "$cache/tiny/tiny.gguf" ]; then
  mkdir -p "$cache/tiny"
  "$cache/tools/bin/python" "$engines/make_tiny_model.py" "$cache/tiny/llama"
  "$cache/tools/bin/python" "$engines/make_tiny_gguf.py" "$cache/tiny/llama" "$cache/tiny/tiny.gguf"
fi
echo "llama.cpp is ready"
