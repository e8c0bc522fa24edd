#!/usr/bin/env bash
# Installs the .deb of dist/ in a fresh Debian, runs the demo there as nobody, then
# boots it and records traffic with the units as they ship. Needs root, mmdebstrap
# and systemd-container; ROOT=DIR keeps the Debian for another time.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "test-install: $*" >&2; exit 1; }
for tool in mmdebstrap systemd-nspawn; do
  command -v "$tool" >/dev/null || die "no $tool here: apt-get install mmdebstrap systemd-container"
done
[ "$(id -u)" = 0 ] || die "needs root, for a chroot"
arch=$(dpkg --print-architecture)
debs=("${DIST:-dist}"/reprise_*_"$arch".deb)
[ -f "${debs[0]}" ] || die "no ${debs[0]}: make release first"

root=${ROOT:-$(mktemp -d)}
[ -n "${ROOT:-}" ] || trap 'rm -rf --one-file-system "$root"' EXIT
[ -e "$root/etc/debian_version" ] ||
  mmdebstrap --variant=minbase --include=systemd,systemd-sysv,python3,curl bookworm "$root"
cp "${debs[0]}" "$root/opt/reprise.deb"

in_root() { systemd-nspawn --quiet --register=no --keep-unit --private-network -D "$root" "$@"; }

echo "== install, and the demo as nobody"
# shellcheck disable=SC2016 # for the shell in there
in_root sh -ec '
dpkg -i /opt/reprise.deb
for p in capture replay report synth trace; do $p --version; done
cd "$(mktemp -d)" && chown nobody . && status=0
setpriv --reuid 65534 --regid 65534 --clear-groups replay "model:mooncake-conv?prompts=0.1&outputs=0.3" --duration 20s --speedup 4 --quiet -o run/ || status=$?
[ $status = 0 ] || [ $status = 3 ] # 3: the machine was busy, and the run says so
trace validate run/trace.parquet'

echo "== boot, and record with the units"
cat >"$root/opt/engine.py" <<'PY'
# Answers every POST as an engine does, with usage.
import http.server
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = (b'{"object":"text_completion","model":"m","choices":[{"text":"a b","index":0,"finish_reason":"stop"}],'
                b'"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}')
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), H).serve_forever()
PY
cat >"$root/opt/record.sh" <<'SH'
set -u
python3 /opt/engine.py 2>/dev/null &
systemctl start reprise-capture-packets.service reprise-capture-proxy.socket || exit 1
sleep 3
ask() { curl -sf -m 20 -H 'Content-Type: application/json' -d '{"model":"m","prompt":"once upon a time"}' http://127.0.0.1:8080/v1/completions >/dev/null || echo "request failed"; }
for i in 1 2 3 4 5; do ask; done
for unit in proxy packets; do
  pid=$(systemctl show -P MainPID reprise-capture-$unit.service)
  [ "$pid" != 0 ] || continue
  echo "$unit: $(grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/"$pid"/status | tr -s '\t\n' ' ')"
done
systemctl restart reprise-capture-proxy.service # the socket stays: nothing is refused
for i in 1 2 3; do ask; done
systemctl reload reprise-capture-proxy.service && echo "reloaded"
systemctl stop reprise-capture-proxy.socket reprise-capture-proxy.service reprise-capture-packets.service
for unit in proxy packets; do
  [ "$(systemctl show -P Result reprise-capture-$unit.service)" = success ] || journalctl --no-pager -u reprise-capture-$unit.service
done
echo "files: $(stat -L -c '%n %a' /var/lib/reprise/* | tr '\n' ' ')"
rows() { for f in "$@"; do trace info --json "$f"; done | python3 -c '
import json, sys
text, n, d = sys.stdin.read(), 0, json.JSONDecoder()
while text.strip():
    o, end = d.raw_decode(text.lstrip()); text = text.lstrip()[end:]; n += o["header"]["rows"]["recorded"]
print(n)'; }
echo "recorded by the proxy: $(rows /var/lib/reprise/proxy*.parquet)"
echo "recorded from packets: $(rows /var/lib/reprise/packets*.parquet)"
SH
cat >"$root/etc/systemd/system/test-record.service" <<'UNIT'
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh /opt/record.sh >/opt/record.log 2>&1; systemctl --no-block poweroff'
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../test-record.service "$root/etc/systemd/system/multi-user.target.wants/"
rm -rf "$root/opt/record.log" "$root/var/lib/reprise" "$root/var/lib/private/reprise"
timeout -k 10 300 systemd-nspawn --quiet --register=no --keep-unit --private-network -D "$root" -b >"$root/opt/boot.log" 2>&1 || true
cat "$root/opt/record.log"
grep -q '^recorded by the proxy: 8$' "$root/opt/record.log" || die "the proxy did not record the 8 requests"
grep -q '^reloaded$' "$root/opt/record.log" || die "the proxy was not reloaded"
# Packets see both legs: the client's to the proxy, which --port leaves out, and the proxy's.
grep -q '^recorded from packets: 8$' "$root/opt/record.log" || die "the packets of the 8 requests were not recorded"

echo "== remove"
in_root sh -ec 'dpkg --purge reprise; ! command -v replay; ls -d /var/lib/private/reprise'
echo "ok"
