#!/usr/bin/env python3
"""The figures of run.sh that play traces against the mock server.

    bench.py DIR SECTION...     DIR holds the built programs: replay, trace, serve

Every client is measured the same way: the mock logs when each request reached
it, and a client's send error is how much later that was than the trace says.
Zero is the request that was least late, so a constant delay is forgiven. What
the client says of itself stands beside it. Only Python's standard library is
used.
"""
import contextlib, http.server, json, os, random, re, resource, shutil, signal, statistics, subprocess, sys, tempfile, threading, time

DIR = os.path.abspath(sys.argv[1])
ROUNDS = int(os.environ.get("ROUNDS", "2"))
RATES = [int(r) for r in os.environ.get("RATES", "500,1000,5000,10000").split(",")]
SECONDS = float(os.environ.get("SECONDS_EACH", "10"))
CACHE = os.environ.get("REPRISE_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "reprise")
MS = 1e6  # ns
FIRST = 50 * MS


class Skip(Exception):
    """A section or a peer that cannot run here, and why."""


# --- traces -----------------------------------------------------------------

def constant(rate, seconds):
    return [round(i * 1e9 / rate / 100) * 100 for i in range(int(rate * seconds))]


def burst_times():
    """30 s, 2,000 requests, 200 of them within 10 ms."""
    return sorted([round(i * 30e9 / 1800) // 100 * 100 for i in range(1800)] + [int(15e9) + i * 50000 for i in range(200)])


def write_azure(path, times, prompt=16, output=16):
    """Azure's CSV: 100 ns ticks."""
    with open(path, "w", buffering=1 << 20) as f:
        f.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        tail, last, head = f",{prompt},{output}\n", -1, ""
        for t in times:
            s, rest = divmod(t // 100, 10**7)
            if s != last:
                last, head = s, "2024-01-%02d %02d:%02d:%02d." % (1 + s // 86400, s // 3600 % 24, s // 60 % 60, s % 60)
            f.write(f"{head}{rest:07d}{tail}")


def write_mooncake(path, times, prompt=16, output=16):
    with open(path, "w") as f:
        for i, t in enumerate(times):
            f.write(json.dumps({"timestamp": t / MS, "input_length": prompt, "output_length": output, "hash_ids": [i]}) + "\n")


# --- processes --------------------------------------------------------------

def busy():
    """CPU seconds that all processes used since boot, stolen time included."""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    return (sum(v) - v[3] - v[4]) / os.sysconf("SC_CLK_TCK")


class Run:
    """A client that ran to its end, and what it took."""

    def __init__(self, cmd, env=None, cwd=None, limit=300, interrupt_after=None, ok=(0,)):
        self.began, before, own = time.monotonic(), busy(), os.times()
        with tempfile.TemporaryFile() as out:
            p = subprocess.Popen(cmd, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd,
                                 env={**os.environ, **(env or {})}, start_new_session=True)
            try:
                deadline = self.began + (interrupt_after or limit)
                sent = False
                while True:
                    pid, status, usage = os.wait4(p.pid, os.WNOHANG)
                    if pid:
                        break
                    if time.monotonic() > deadline:
                        # The whole session: peers start workers.
                        os.killpg(p.pid, signal.SIGKILL if sent or not interrupt_after else signal.SIGINT)
                        sent, deadline = True, time.monotonic() + 30
                    time.sleep(0.05)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(p.pid, signal.SIGKILL)
                raise
            finally:
                p.returncode = 0  # reaped above
            out.seek(0)
            self.out = out.read().decode(errors="replace")
        self.rc = os.waitstatus_to_exitcode(status)
        self.wall = time.monotonic() - self.began
        self.cpu, self.rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        mine = os.times()
        # Of this script and of what it waited for; the mock still runs.
        self.others = (busy() - before) - (sum(mine[:4]) - sum(own[:4]))
        if self.rc not in ok:
            tail = "\n    ".join(self.out.strip().splitlines()[-8:])
            raise Skip(f"{os.path.basename(cmd[0])} ended with status {self.rc} after {self.wall:.0f} s:\n    {tail}")


class Mock:
    def __init__(self, first=0, gap=0, per_write=0, addr="127.0.0.1:0"):
        self.log = os.path.join(WORK, "seen.csv")
        cmd = [f"{DIR}/serve", "--log", self.log, "--first-token", f"{int(first)}ns", "--gap", f"{int(gap)}ns", "--per-write", str(per_write), "--addr", addr]
        self.p = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=Mock.urgent)
        self.url = self.p.stdout.readline().strip()
        if not self.url:
            raise Skip("the mock server did not start")

    @staticmethod
    def urgent():
        """In real time, where that is allowed: a server has cores of its own, and
        what the mock itself is late would be taken for the client's error."""
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    def __enter__(self):
        return self

    def cpu(self):
        with open(f"/proc/{self.p.pid}/stat") as f:
            v = f.read().rsplit(")", 1)[1].split()
        return (int(v[11]) + int(v[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *_):
        self.p.stdin.close()
        self.p.wait()

    def seen(self):
        """(arrived, answered) of each request, by arrival; after the mock ended."""
        with open(self.log) as f:
            return sorted(tuple(map(int, line.split(","))) for line in f)


# --- figures ----------------------------------------------------------------

def quantile(v, q):
    v = sorted(v)
    return v[min(len(v) - 1, int(q * len(v)))] if v else float("nan")


def ms(ns):
    v = abs(ns) / MS
    return "-" if ns != ns else f"{ns / MS:.3f}" if v < 10 else f"{ns / MS:.1f}" if v < 100 else f"{ns / MS:,.0f}"


def three(v):
    return " / ".join(ms(x) for x in (quantile(v, 0.5), quantile(v, 0.99), max(v, default=float("nan"))))


def table(head):
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)


def row(*cells):
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def load():
    return open("/proc/loadavg").read().split()[0]


class View:
    """What the server saw of a client that was to send at given times."""

    def __init__(self, mock, times):
        seen = mock.seen()
        extra = len(seen) - len(times)
        if extra < 0:
            print(f"  ({-extra} of {len(times)} requests never arrived)")
        seen = seen[max(0, extra):]  # a client may try the server first
        if not seen:
            raise Skip("no request reached the mock server")
        zero = min(a - t for (a, _), t in zip(seen, times))
        at = [a - zero for a, _ in seen]
        self.errors = [a - t for a, t in zip(at, times)]
        self.ttft = [b - a for a, b in seen]
        self.rate = (len(seen) - 1) / ((at[-1] - at[0]) / 1e9)
        self.late_end = self.errors[-1]
        # The requests of the burst, if there is one.
        dense = [i for i in range(len(at)) if 15e9 <= times[i] < 15.0099e9]
        self.burst = [self.errors[i] for i in dense]
        self.burst_took = at[dense[-1]] - at[dense[0]] if dense else 0


def replay(mock, trace, extra=(), **kw):
    """Plays a trace. A run on a busy machine ends with status 3 and counts."""
    out = os.path.join(WORK, "run")
    env = {"JOB_COMPLETION_INDEX": "", "SLURM_ARRAY_TASK_ID": ""}
    before = mock.cpu()
    r = Run([f"{DIR}/replay", trace, "--backend", "vllm=" + mock.url, "-q", "--force", "-o", out, *extra], env=env, ok=(0, 3), **kw)
    r.others = max(0, r.others - (mock.cpu() - before)) / r.wall
    with open(os.path.join(out, "run.json")) as f:
        r.run = json.load(f)
    return r


def replay_rows(columns):
    """The rows of the last run, as tuples."""
    p = subprocess.run([f"{DIR}/trace", "head", os.path.join(WORK, "run"), "-n", "0", "--json", "--columns", ",".join(columns)],
                       check=True, capture_output=True, text=True)
    return [tuple(json.loads(line)[c] for c in columns) for line in p.stdout.splitlines()]


class Said:
    """What replay says of its own run."""

    def __init__(self, r, view):
        rows = replay_rows(["scheduled_ns", "sent_ns", "ttft_ns"])
        self.errors = [abs(s - d) for d, s, _ in rows]
        self.ttft = [t for _, _, t in rows]
        # Requests reach the server in the order in which they were sent, so that
        # each has the server's own figure beside it.
        self.ttft_errors = [abs(t - true) for (_, t), true in zip(sorted((s, t) for _, s, t in rows), view.ttft)]
        self.burst = [abs(s - d) for d, s, _ in rows if 15e9 <= d < 15.0099e9]
        last = max(rows)
        self.late_end = (max(s for _, s, _ in rows) - last[0]) / last[0]
        self.rate = (len(rows) - 1) / ((max(s for _, s, _ in rows) - min(s for _, s, _ in rows)) / 1e9)
        q = r.run["summary"]["requests"]
        self.failed = q["rows"] - q["ok"]


# --- sections ---------------------------------------------------------------

def fidelity():
    print(f"Open loop, constant rate, {SECONDS:.0f} s each, {ROUNDS} rounds; client std in the first. The mock's first event comes after 50 ms, then one in 5 ms, a write each:")
    print("16 events up to 1,000/s, 2 above. Send error |actual - due| and TTFT error |reported - the mock's own| in ms, p50 / p99 / max; others: cores that other processes used.")
    table(["rate", "client", "sent/s", "last send late, % of span", "send error", "at the server", "TTFT error", "mock late p99", "CPU/request", "failed", "load", "others"])
    for rate in RATES:
        times = constant(rate, SECONDS)
        trace = os.path.join(WORK, "constant.csv")
        write_azure(trace, times, output=16 if rate <= 1000 else 2)
        for i in range(ROUNDS):
            for client in ("raw", "std") if i == 0 else ("raw",):
                before = load()
                with Mock(FIRST, 5 * MS, 1) as m:
                    r = replay(m, trace, ["--client", client])
                v = View(m, times)
                s = Said(r, v)
                row(f"{rate:,}", client, f"{s.rate:,.0f}", f"{100 * s.late_end:.4f}", three(s.errors), three(v.errors), three(s.ttft_errors),
                    ms(quantile(v.ttft, 0.99) - FIRST), f"{1e6 * r.cpu / len(times):.0f} us", s.failed, before, f"{r.others:.2f}")


def burst():
    print(f"30 s, 2,000 requests of 16 events, 200 of them within 10 ms; {ROUNDS} rounds, client std in the first. In ms, p50 / p99 / max; `burst` is these 200 alone.")
    table(["client", "send error", "in the burst", "burst, at the server", "the 10 ms took", "TTFT p50 / p99, reported", "true", "TTFT error", "failed", "load", "others"])
    times = burst_times()
    trace = os.path.join(WORK, "burst.csv")
    write_azure(trace, times)
    for i in range(ROUNDS):
        for client in ("raw", "std") if i == 0 else ("raw",):
            before = load()
            with Mock(FIRST, 5 * MS, 1) as m:
                r = replay(m, trace, ["--client", client])
            v = View(m, times)
            s = Said(r, v)
            row(client, three(s.errors), three(s.burst), three(v.burst), ms(v.burst_took),
                f"{ms(quantile(s.ttft, 0.5))} / {ms(quantile(s.ttft, 0.99))}", f"{ms(quantile(v.ttft, 0.5))} / {ms(quantile(v.ttft, 0.99))}",
                three(s.ttft_errors), s.failed, before, f"{r.others:.2f}")


def streams():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    n = min(20000, limit - 300) if limit != resource.RLIM_INFINITY else 20000
    trace = os.path.join(WORK, "streams.csv")
    table(["what", "requests", "in flight", "peak memory", "so", "CPU/request", "failed", "load", "others"])

    def one(what, first, times, extra=(), output=2):
        write_azure(trace, times, output=output)
        before = load()
        with Mock(first, 20 * MS if first else 0, 1 if first else 0) as m:
            r = replay(m, trace, extra)
        q = r.run["summary"]["requests"]
        return r, lambda so: row(what, f"{len(times):,}", f"{r.run['stats']['in_flight_peak']:,}", f"{r.rss / 1e6:.0f} MB", so,
                                 f"{1e6 * r.cpu / len(times):.0f} us", q["rows"] - q["ok"], before, f"{r.others:.2f}")

    # The same requests few and many at a time: the difference is the streams'.
    times = constant(4000, n / 4000)
    low, show = one("few at a time", MS, times, ["--concurrency", "64"])
    show("-")
    high, show = one("all at a time", 5e9, times, ["--concurrency", str(n)])
    show(f"{(high.rss - low.rss) / high.run['stats']['in_flight_peak'] / 1000:.1f} KB a stream")
    # Closed loop: long and short runs of the same pace.
    sizes, peaks = (100_000, 1_100_000), []
    for size in sizes:
        r, show = one("finished", 0, constant(10000, size / 10000), ["--concurrency", "64"], output=1)
        peaks.append(r.rss)
        show("-" if len(peaks) == 1 else f"{(peaks[1] - peaks[0]) / (sizes[1] - sizes[0]):.0f} B a finished request")


def memory():
    rows, rate = 10_000_000, 2000
    csv, native = os.path.join(WORK, "long.csv"), os.path.join(WORK, "long.parquet")
    write_azure(csv, range(0, rows * 500_000, 500_000), output=2)
    table(["what", "rows", "peak memory", "wall", "CPU", "load"])
    before = load()
    r = Run([f"{DIR}/trace", "convert", csv, "-o", native])
    row("trace convert", f"{rows:,}", f"{r.rss / 1e6:.0f} MB", f"{r.wall:.1f} s", f"{r.cpu:.1f} s", before)
    os.remove(csv)
    for what, limit in (("replay, 10 s of it", ["--duration", "10s"]), ("replay, interrupted after 35 s", [])):
        before = load()
        with Mock(FIRST, 5 * MS, 1) as m:
            out = os.path.join(WORK, "run")
            r = Run([f"{DIR}/replay", native, "--backend", "vllm=" + m.url, "-q", "--force", "-o", out, "--grace", "2s", *limit],
                    ok=(0, 3, 130), interrupt_after=35)
        with open(os.path.join(out, "run.json")) as f:
            d = json.load(f)
        row(f"{what}: {d['stats']['requests_sent']:,} sent", f"{d['trace'].get('rows_read', 0):,}", f"{r.rss / 1e6:.0f} MB", f"{r.wall:.1f} s", f"{r.cpu:.1f} s", before)


def serve_page():
    """A page of metrics as vLLM wrote it, whose counters stand still, until stdin ends."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../gpu/testdata/engines/vllm-0.32.0.txt"), "rb") as f:
        page = f.read()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the last one may be called off
                self.wfile.write(page)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}/metrics", flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def metrics_page():
    """The address of that page, served by a process of its own."""
    p = subprocess.Popen([sys.executable, os.path.abspath(__file__), DIR, "serve_page"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield p.stdout.readline().strip()
    finally:
        p.stdin.close()
        p.wait()


def telemetry():
    """Every round plays all variants in an order of its own, so that none always
    comes behind the same other, and every variant has the page served beside it."""
    rate = int(os.environ.get("TELEMETRY_RATE", "5000"))
    rounds = int(os.environ.get("ROUNDS", "5"))
    print(f"{rate:,}/s for {SECONDS:.0f} s, {rounds} rounds of each in shuffled order. Scraped is a page of vLLM's (58 KB); in ms, p50 / p99 / max.")
    table(["round", "telemetry", "send error", "at the server", "readings", "CPU/request", "failed", "load", "others"])
    times = constant(rate, SECONDS)
    trace = os.path.join(WORK, "constant.csv")
    write_azure(trace, times, output=2)
    order = random.Random(1)
    said, seen = {}, {}
    with metrics_page() as url:
        variants = [("off", ["--telemetry", "off"]), ("2 Hz", ["--metrics-url", url]),
                    ("20 Hz, and served", ["--metrics-url", url, "--metrics-rate", "20", "--metrics-addr", "127.0.0.1:0"])]
        for n in range(rounds):
            for what, extra in order.sample(variants, len(variants)):
                before = load()
                with Mock(FIRST, 5 * MS, 1) as m:
                    r = replay(m, trace, extra)
                v = View(m, times)
                s = Said(r, v)
                readings = sum(x["readings"] for x in r.run.get("telemetry", {}).get("sources", []))
                row(n + 1, what, three(s.errors), three(v.errors), readings, f"{1e6 * r.cpu / len(times):.0f} us", s.failed, before, f"{r.others:.2f}")
                for kept, errors in (said, s.errors), (seen, v.errors):
                    kept.setdefault(what, []).append((quantile(errors, 0.5), quantile(errors, 0.99), max(errors, default=float("nan"))))
    print("\nMedians over the rounds, and the range of p99:")
    table(["telemetry", "send error", "p99 from", "to", "at the server", "p99 from", "to"])
    for what, _ in variants:
        cells = []
        for kept in said, seen:
            p99 = [r[1] for r in kept[what]]
            cells += [" / ".join(ms(statistics.median(x)) for x in zip(*kept[what])), ms(min(p99)), ms(max(p99))]
        row(what, *cells)


# --- peers ------------------------------------------------------------------

def tokenizer():
    path = os.environ.get("REPRISE_TOKENIZER") or os.path.join(CACHE, "tiny", "llama")
    if not os.path.isfile(os.path.join(path, "tokenizer.json")):
        raise Skip(f"no tokenizer in {path}: set REPRISE_TOKENIZER to a model's folder")
    return path


def venv(name, package):
    """The bin folder of a peer, installed on first use; REPRISE_INSTALL=0 forbids that."""
    for home in (os.path.join(CACHE, name), os.path.join(CACHE, "peers", name)):
        if os.path.exists(os.path.join(home, "bin", "python")) and not os.path.exists(os.path.join(home, "unfinished")):
            return os.path.join(home, "bin")
    if package is None:
        raise Skip(f"no virtual environment {os.path.join(CACHE, name)}")
    if os.environ.get("REPRISE_INSTALL") == "0":
        raise Skip("not installed")
    os.makedirs(home, exist_ok=True)
    mark = os.path.join(home, "unfinished")
    open(mark, "w").close()
    print(f"  (installing {package})", flush=True)
    Run([sys.executable, "-m", "venv", home])
    Run([os.path.join(home, "bin", "pip"), "install", "-q", "--disable-pip-version-check", package], limit=600)
    os.remove(mark)
    return os.path.join(home, "bin")


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
def peer_vllm(url, trace, n, out):
    env = {**OFFLINE, "VLLM_TARGET_DEVICE": "cpu"}
    r = Run([venv("vllm", None) + "/vllm", "bench", "serve", "--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions",
             "--model", "mock", "--tokenizer", tokenizer(), "--dataset-name", "timed_trace", "--dataset-path", trace,
             "--timed-trace-sec-multiplier", "0.001", "--num-prompts", str(n), "--ignore-eos", "--percentile-metrics", "ttft",
             "--metric-percentiles", "50,99", "--save-result", "--result-dir", out, "--result-filename", "vllm.json",
             "--disable-tqdm", "--ready-check-timeout-sec", "0"], env=env, limit=200)
    with open(os.path.join(out, "vllm.json")) as f:
        d = json.load(f)
    return r, d["p50_ttft_ms"] * MS, d["p99_ttft_ms"] * MS


def peer_guidellm(url, trace, n, out):
    seconds = os.path.join(out, "seconds.jsonl")
    with open(trace) as f, open(seconds, "w") as g:
        for line in f:
            d = json.loads(line)
            g.write(json.dumps({**d, "timestamp": d["timestamp"] / 1000}) + "\n")
    r = Run([venv("guidellm", "guidellm==0.8.1") + "/guidellm", "run",
             "--backend", f"kind=openai_http,target={url},model=mock,request_format=/v1/completions",
             "--tokenizer", f"kind=huggingface_auto,model={tokenizer()}", "--profile", "kind=replay,schedule_turn=timestamp",
             "--data", f"kind=trace_synthetic,source.kind=json_file,source.path={seconds}",
             "--output", f"kind=json,path={out}/guidellm.json", "--disable-console"], env=OFFLINE, cwd=out, limit=200)
    with open(os.path.join(out, "guidellm.json")) as f:
        d = json.load(f)
    p = d["benchmarks"][0]["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"]
    return r, p["p50"] * MS, p["p99"] * MS


def peer_aiperf(url, trace, n, out):
    # It takes no folder for a tokenizer, but the cache of Hugging Face's hub.
    repo, rev = os.path.join(out, "hub", "models--bench--tiny"), "0" * 40
    shutil.copytree(tokenizer(), os.path.join(repo, "snapshots", rev), ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    os.makedirs(os.path.join(repo, "refs"))
    with open(os.path.join(repo, "refs", "main"), "w") as f:
        f.write(rev)
    r = Run([venv("aiperf", "aiperf==0.13.0") + "/aiperf", "profile", "--model", "mock", "--url", url, "--endpoint-type", "completions",
             "--streaming", "--tokenizer", "bench/tiny", "--input-file", trace, "--custom-dataset-type", "mooncake_trace", "--fixed-schedule",
             "--use-server-token-count", "--artifact-dir", out, "--ui-type", "none"], env={**OFFLINE, "HF_HUB_CACHE": os.path.join(out, "hub")}, cwd=out, limit=200)
    for root, _, files in os.walk(out):
        for name in files:
            if name.startswith("profile_export_aiperf") and name.endswith(".json"):
                with open(os.path.join(root, name)) as f:
                    t = json.load(f)["time_to_first_token"]
                return r, t["p50"] * MS, t["p99"] * MS
    raise Skip("aiperf left no profile_export_aiperf.json")


def peers():
    tests = (("500/s", constant(500, SECONDS)), ("burst", burst_times()))
    players = [("vllm bench serve", peer_vllm), ("guidellm", peer_guidellm), ("aiperf", peer_aiperf)]
    print("The same trace for every client, one after the other; ms. What the mock saw, then the TTFT that the client reports.")
    print("Left out: inference-perf, which needs Python 3.12 and whose session player ignores arrivals; SGLang's bench_serving and k6, which play no trace.")
    for name, times in tests:
        csv, jsonl = os.path.join(WORK, "peer.csv"), os.path.join(WORK, "peer.jsonl")
        write_azure(csv, times)
        write_mooncake(jsonl, times)
        print(f"\n{name}: {len(times):,} requests of 16 events")
        table(["client", "sent/s", "send error p50 / p99 / max", "last send late", "burst p99 / max", "the 10 ms took", "TTFT p50 / p99, reported", "true", "CPU/request, start included", "largest process", "load", "others"])

        def show(client, m, r, p50, p99, before):
            v = View(m, times)
            row(client, f"{v.rate:,.0f}", three(v.errors), ms(v.late_end),
                f"{ms(quantile(v.burst, 0.99))} / {ms(max(v.burst))}" if v.burst else "-", ms(v.burst_took) if v.burst else "-",
                f"{ms(p50)} / {ms(p99)}", f"{ms(quantile(v.ttft, 0.5))} / {ms(quantile(v.ttft, 0.99))}",
                f"{1e6 * r.cpu / len(times):,.0f} us", f"{r.rss / 1e6:.0f} MB", before, f"{r.others:.2f}")

        before = load()
        with Mock(FIRST, 5 * MS, 1) as m:
            r = replay(m, csv)
        s = Said(r, View(m, times))
        show("replay", m, r, quantile(s.ttft, 0.5), quantile(s.ttft, 0.99), before)
        for client, play in players:
            out = tempfile.mkdtemp(dir=WORK)
            before = load()
            try:
                with Mock(FIRST, 5 * MS, 1) as m:
                    r, p50, p99 = play(m.url, jsonl, len(times), out)
                    r.others = max(0, r.others - m.cpu()) / r.wall
                show(client, m, r, p50, p99, before)
            except Skip as e:
                row(client, f"skipped: {e}")


SECTIONS = {f.__name__: f for f in (fidelity, burst, telemetry, streams, memory, peers)}

if __name__ == "__main__":
    if sys.argv[2:] == ["serve_page"]:
        sys.exit(serve_page())
    failed = False
    for name in sys.argv[2:]:
        WORK = tempfile.mkdtemp(prefix="bench-")
        try:
            SECTIONS[name]()
        except Skip as e:
            print(f"skipped: {e}")
            failed = True
        finally:
            shutil.rmtree(WORK, ignore_errors=True)
    sys.exit(failed)
