#!/bin/sh
# Before a removal ("remove" of a .deb, 0 of an .rpm). An upgrade leaves running
# services alone: a proxy has streams to finish, and its administrator restarts it.
set -e
case "$1" in
remove | deconfigure | 0)
  if [ -d /run/systemd/system ]; then
    systemctl --no-reload disable --now \
      reprise-capture-proxy.socket reprise-capture-proxy.service reprise-capture-packets.service || true
  fi
  ;;
esac
