#!/usr/bin/env python3
"""Unpacks the image of dist/ and runs it as pods do: another user, a root that
cannot be written to, no capabilities. What it runs are the command lines of the
sidecars in docs/capturing.md, and the jobs that "replay kubernetes" prints, which
play through the proxy. Needs root, for namespaces and mounts of its own. DIST is
the folder of the release; START_IN how long the shards may take to be ready.
"""
import ctypes, glob, gzip, http.server, io, json, os, platform, re, shutil, signal, subprocess, sys, tarfile, tempfile, threading, time, urllib.request

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
USER = 65532  # runAsUser, runAsGroup and fsGroup of the manifests


def die(text):
    sys.exit("test-image: " + text)


def unpack(image, root):
    """Unpacks the layers for this machine, and returns the configuration."""
    with tarfile.open(image) as t:
        blob = lambda digest: t.extractfile("blobs/" + digest.replace(":", "/")).read()
        inner = json.load(t.extractfile("index.json"))["manifests"][0]["digest"]
        manifest = next(m for m in json.loads(blob(inner))["manifests"] if m["platform"]["architecture"] == ARCH)
        manifest = json.loads(blob(manifest["digest"]))
        for layer in manifest["layers"]:
            data = blob(layer["digest"])
            if data[:2] == b"\x1f\x8b":
                data = gzip.decompress(data)
            with tarfile.open(fileobj=io.BytesIO(data)) as l:
                l.extractall(root, numeric_owner=True)
        return json.loads(blob(manifest["config"]["digest"]))["config"]


def mount(*args):
    subprocess.run(["mount", *args], check=True)


class Pods:
    """What the kubelet and the container runtime do."""

    def __init__(self, work, config):
        self.root, self.path = work + "/root", dict(e.split("=", 1) for e in config["Env"])["PATH"]
        if config["User"] != f"{USER}:{USER}":
            die(f"the image's user is {config['User']}, the manifests' {USER}")
        mount("--bind", self.root, self.root)
        for name, mode, group in ("tmp", 0o777, 0), ("traces", 0o777, 0), ("data", 0o2775, USER), ("key", 0o755, 0), ("dev", 0o755, 0), ("proc", 0o755, 0):
            os.makedirs(f"{self.root}/{name}", exist_ok=True)
            if name != "proc":
                mount("-t", "tmpfs", "-o", f"mode={mode:o},gid={group}", "tmpfs", f"{self.root}/{name}")
        mount("-t", "proc", "proc", self.root + "/proc")
        for name, minor in ("null", 3), ("urandom", 9):
            os.mknod(f"{self.root}/dev/{name}", 0o020666, os.makedev(1, minor))
            os.chmod(f"{self.root}/dev/{name}", 0o666)
        # A Secret under fsGroup.
        os.mkdir(self.root + "/key/..v1")
        with open(self.root + "/key/..v1/key", "w") as f:
            f.write(os.urandom(32).hex())
        os.chown(self.root + "/key/..v1/key", 0, USER)
        os.chmod(self.root + "/key/..v1/key", 0o440)
        os.symlink("..v1", self.root + "/key/..data")
        os.symlink("..data/key", self.root + "/key/key")
        mount("-o", "remount,ro", "tmpfs", self.root + "/key")
        mount("-o", "remount,bind,ro", self.root)

    def start(self, command, user=USER, capabilities=(), env=None, **kw):
        libc = ctypes.CDLL(None)
        kept = {{"SETGID": 6, "SETUID": 7, "NET_RAW": 13}[c] for c in capabilities}

        def become():
            os.chroot(self.root)
            os.chdir("/data")
            for c in set(range(64)) - kept:
                libc.prctl(24, c, 0, 0, 0)  # PR_CAPBSET_DROP
            os.setgroups([USER])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS

        return subprocess.Popen(command, executable=f"{self.path}/{command[0]}", preexec_fn=become, text=True,
                                env={"PATH": self.path, "HOME": "/data", **(env or {})}, **kw)

    def run(self, command, ok=(0,), **kw):
        p = self.start(command, stdout=subprocess.PIPE, **kw)
        out, _ = p.communicate(timeout=300)
        if p.returncode not in ok:
            die(f"{' '.join(command)} ended with {p.returncode}\n{out}")
        return out


class Engine(http.server.BaseHTTPRequestHandler):
    """Streams as many tokens as are asked for."""
    protocol_version = "HTTP/1.1"
    answered = []  # requests for tokens; those of a run, and the probes before it

    def answer(self, kind, body, status=200):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer("application/json", b'{"object":"list","data":[{"id":"m","object":"model"}]}')

    def do_POST(self):
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/completions"):
            return self.answer("application/json", b"{}", 404)
        self.answered.append(self.path)
        n = ask.get("max_tokens") or ask.get("max_completion_tokens") or 1
        usage = {"prompt_tokens": 5, "completion_tokens": n, "total_tokens": n + 5}
        chat = "chat" in self.path

        def choice(text, reason):
            c = {"index": 0, "finish_reason": reason}
            return {**c, "delta": {"content": text}} if chat else {**c, "text": text}

        kind = "chat.completion.chunk" if chat else "text_completion"
        events = [{"object": kind, "model": "m", "choices": [choice("a ", "length" if i == n - 1 else None)]} for i in range(n)]
        events.append({"object": kind, "model": "m", "choices": [], "usage": usage})
        self.answer("text/event-stream", "".join(f"data: {json.dumps(e)}\n\n" for e in events).encode() + b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


def sidecars():
    """The command lines of docs/capturing.md by their subcommand."""
    found = {}
    for args in re.findall(r"args: (\[\"capture\".*?\])", open("docs/capturing.md").read(), re.S):
        args = json.loads(args)
        found[args[1]] = args
    return found


def containers(manifest):
    """The data of the ConfigMap, and the command and arguments of each job."""
    config, jobs = {}, []
    scalar = lambda s: json.loads(s) if s.startswith('"') else s.strip("'")
    for document in manifest.split("\n---\n"):
        if "kind: ConfigMap" in document:
            config = {k: scalar(v) for k, v in re.findall(r"^  (\w+): (.*)$", document.split("\ndata:")[1], re.M)}
            continue
        command = []
        for name in "command", "args":
            lines = re.search(rf"^ *{name}:\n((?: *- .*\n)+)", document, re.M).group(1)
            command += [scalar(l.strip()[2:]) for l in lines.splitlines()]
        jobs.append(command)
    return config, jobs


def expand(command, env):
    return [re.sub(r"\$\((\w+)\)", lambda m: env[m.group(1)], c) for c in command]


def test(work):
    images = glob.glob(os.environ.get("DIST", "dist") + "/reprise_*_image.tar")
    if len(images) != 1:
        die("no image: make release first")
    os.mkdir(work + "/root")
    pods = Pods(work, unpack(images[0], work + "/root"))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Engine).serve_forever, daemon=True).start()

    print("== the sidecars of docs/capturing.md")
    lines = sidecars()
    recorders = {
        "proxy": pods.start(lines["proxy"]),
        "packets": pods.start(lines["packets"], user=0, capabilities=("NET_RAW", "SETUID", "SETGID")),
    }
    for attempt in range(300):
        try:
            urllib.request.urlopen("http://127.0.0.1:9091/healthz")
            break
        except OSError:
            time.sleep(0.1)
    else:
        die("the proxy does not answer at /healthz")

    print("== the jobs of replay kubernetes, through the proxy")
    config, jobs = containers(pods.run(["replay", "kubernetes", "model:azure-conv", "--duration", "10s", "--shards", "2", "--claim", "traces", "--name", "run-1",
                                        "--backend", "openai", "--url", "http://127.0.0.1:8080", "--model", "m", "--start-in", os.environ.get("START_IN", "20s")]))
    shards = []
    for i in range(2):
        env = {**config, "JOB_COMPLETION_INDEX": str(i)}
        shards.append(pods.start(expand(jobs[0], env), env=env, stdout=subprocess.DEVNULL))
    if codes := [c for c in (s.wait(300) for s in shards) if c not in (0, 3)]:  # 3: the machine was busy, and the run says so
        die(f"a shard ended with {codes[0]}")
    pods.run(expand(jobs[1], config), ok=(0, 3), env=config)
    run = config["RESULTS"] + "/run"
    pods.run(["trace", "validate", run + "/trace.parquet"])
    rows = lambda name: json.loads(pods.run(["trace", "info", "--json", name]))["header"]["rows"]["recorded"]
    sent, answered = rows(run + "/trace.parquet"), len(Engine.answered)
    print(f"{answered} requests, {sent} of them of the run")
    if not 0 < sent <= answered:
        die(f"the run has {sent} requests, the engine saw {answered}")

    for name, p in recorders.items():
        if p.poll() is not None:
            die(f"capture {name} ended with {p.returncode}")
        p.send_signal(signal.SIGTERM)
        if p.wait(60) != 0:
            die(f"capture {name} ended with {p.returncode}")
    # The traces are their writers', 0600.
    for name, user in ("trace", USER), ("packets", 65534):
        files = glob.glob(f"{pods.root}/traces/{name}*.parquet")
        got = 0
        for f in files:
            if os.stat(f).st_uid != user or os.stat(f).st_mode & 0o777 != 0o600:
                die(f"{f} is not its writer's alone")
            got += json.loads(pods.run(["trace", "info", "--json", f.removeprefix(pods.root)], user=user))["header"]["rows"]["recorded"]
        print(f"{name}: {got} requests in {len(files)} files")
        if got != answered:
            die(f"{name}: {got} requests recorded")
    print("ok")


if __name__ == "__main__":
    if os.geteuid() != 0:
        die("needs root, for mounts and a chroot")
    if os.environ.get("REPRISE_IN_NAMESPACE") != "1":
        os.environ["REPRISE_IN_NAMESPACE"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv])
    work = tempfile.mkdtemp()
    try:
        test(work)
    finally:
        # Lazily: where something failed, programs still run in it.
        subprocess.run(["umount", "--recursive", "--lazy", work + "/root"])
        shutil.rmtree(work)
