#!/bin/sh
# After an installation or an upgrade, of a .deb ("configure") or an .rpm (a
# count). Nothing is enabled or started: recording is for a person to switch on.
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
