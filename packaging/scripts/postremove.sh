#!/bin/sh
# After a removal. /var/lib/reprise stays, also when a .deb is purged: recordings
# cannot be made again. Who wants them gone removes the folder.
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
