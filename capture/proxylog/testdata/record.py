"""Records the logs of nginx, HAProxy and Caddy that lie beside this file: the three in front of a server that
streams, with answers given up by the client, a server that dies in mid-stream, one that refuses connections (so
that the next one is tried), 4xx, health checks and a list of models.

    python3 record.py FOLDER        (Debian packages nginx, haproxy, caddy; nothing but loopback is used)
"""
import http.server, json, os, socket, subprocess, sys, threading, time

out = os.path.abspath(sys.argv[1])
os.makedirs(out, exist_ok=True)


def port():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    n = s.getsockname()[1]
    s.close()
    return n


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *a):
        pass

    def do_GET(self):
        b = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(b)))
        self.end_headers()
        self.wfile.write(b)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "bad" in self.path:
            b = b'{"error":{"message":"no"}}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(b)))
            self.end_headers()
            self.wfile.write(b)
            return
        try:
            time.sleep(0.05)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(10):
                d = b'data: {"choices":[{"delta":{"content":"tok"}}]}\n\n'
                self.wfile.write(b"%x\r\n%s\r\n" % (len(d), d))
                self.wfile.flush()
                time.sleep(0.03)
                if "die" in self.path and i == 4:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True


up, dead, ng, ha, hasys, cd = (port() for _ in range(6))
server = http.server.ThreadingHTTPServer(("127.0.0.1", up), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()

nginx = """daemon off; worker_processes 1; pid %(d)s/nginx.pid; error_log %(d)s/nginx.err;
events { worker_connections 64; }
http {
 log_format llm escape=json '{"time":"$msec","rt":"$request_time","ip":"$remote_addr","method":"$request_method","uri":"$request_uri",'
   '"status":"$status","uht":"$upstream_header_time","urt":"$upstream_response_time","upstream_status":"$upstream_status",'
   '"upstream_addr":"$upstream_addr","done":"$request_completion","agent":"$http_user_agent"}';
 log_format text '$remote_addr [$time_iso8601] $msec "$request" $status $request_time "$request_completion" up=$upstream_status';
 access_log %(d)s/nginx-names.json.log llm;
 access_log %(d)s/nginx-text.log text;
 access_log %(d)s/nginx-combined.log;
 client_body_temp_path %(d)s/1; proxy_temp_path %(d)s/2; fastcgi_temp_path %(d)s/3; uwsgi_temp_path %(d)s/4; scgi_temp_path %(d)s/5;
 upstream engines { server 127.0.0.1:%(dead)d max_fails=0; server 127.0.0.1:%(up)d max_fails=0; }
 server { listen 127.0.0.1:%(ng)d; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
  proxy_next_upstream error timeout non_idempotent;
  location / { proxy_pass http://engines; } }
}
"""
haproxy = """global
  log 127.0.0.1:%(hasys)d local0
defaults
  mode http
  log global
  option httplog
  option http-no-delay
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend fe
  bind 127.0.0.1:%(ha)d
  default_backend be
backend be
  server s1 127.0.0.1:%(up)d
"""
caddy = """{
 admin off
 auto_https off
}
http://:%(cd)d {
 bind 127.0.0.1
 log {
  output file %(d)s/caddy-more.log
  format json
 }
 reverse_proxy 127.0.0.1:%(up)d
}
"""
v = dict(d=out, up=up, dead=dead, ng=ng, ha=ha, hasys=hasys, cd=cd)
for name, text in (("nginx.conf", nginx), ("haproxy.cfg", haproxy), ("Caddyfile", caddy)):
    open(os.path.join(out, name), "w").write(text % v)

syslog = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
syslog.bind(("127.0.0.1", hasys))
syslog.settimeout(0.5)
lines, stop = [], threading.Event()


def drain():
    while not stop.is_set():
        try:
            lines.append(syslog.recv(65536))
        except socket.timeout:
            pass


reader = threading.Thread(target=drain)
reader.start()
env = dict(os.environ, XDG_DATA_HOME=out, XDG_CONFIG_HOME=out)
procs = [
    subprocess.Popen(["nginx", "-c", out + "/nginx.conf", "-p", out], stderr=subprocess.DEVNULL),
    subprocess.Popen(["haproxy", "-f", out + "/haproxy.cfg"], stderr=subprocess.DEVNULL),
    subprocess.Popen(["caddy", "run", "--config", out + "/Caddyfile", "--adapter", "caddyfile"], stderr=subprocess.DEVNULL, env=env),
]
time.sleep(2)
truth = []


def ask(name, p, method, path, abort=0.0):
    body = b'{"model":"m","stream":true}' if method == "POST" else b""
    s = socket.create_connection(("127.0.0.1", p))
    t0 = time.time()
    s.sendall(b"%s %s HTTP/1.1\r\nHost: x\r\nUser-Agent: cli\r\nContent-Length: %d\r\n\r\n" % (method.encode(), path.encode(), len(body)) + body)
    n = 0
    s.settimeout(abort or 10)
    try:
        while True:
            d = s.recv(65536)
            if not d:
                break
            n += len(d)
            if d.endswith(b"0\r\n\r\n") or b"Content-Length" in d or (abort and time.time() - t0 > abort):
                break
    except socket.timeout:
        pass
    s.close()
    truth.append(dict(proxy=name, path=path, method=method, start=t0, took=time.time() - t0, abort=bool(abort)))
    time.sleep(0.05)


for name, p in (("nginx", ng), ("haproxy", ha), ("caddy", cd)):
    ask(name, p, "POST", "/v1/chat/completions")
    ask(name, p, "POST", "/v1/chat/completions", 0.2)
    ask(name, p, "POST", "/v1/completions?die")
    ask(name, p, "POST", "/v1/messages?bad")
    ask(name, p, "GET", "/health")
    ask(name, p, "GET", "/metrics")
    ask(name, p, "GET", "/v1/models")
    ask(name, p, "POST", "/v1/tokenize")
    ask(name, p, "POST", "/v1/embeddings")
time.sleep(1)
for p in procs:
    p.terminate()
    p.wait()
stop.set()
reader.join()
open(os.path.join(out, "haproxy-more.log"), "wb").write(b"".join(l.rstrip(b"\n\0") + b"\n" for l in lines))
json.dump(truth, open(os.path.join(out, "truth.json"), "w"), indent=1)
