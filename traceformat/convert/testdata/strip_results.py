#!/usr/bin/env python3
"""Makes the result files here of what the tools wrote.

    strip_results.py vllm|aiperf|aiperf-summary|guidellm IN > OUT

Text of prompts and answers becomes "(text)", paths, addresses and trace backs
go, and so do figures that no importer reads. Numbers stay as they were written.
"""
import json, re, sys

kind, path = sys.argv[1:]
FIGURES = ("request_latency", "time_to_first_token_ms", "inter_token_latency_ms", "time_per_output_token_ms", "requests_per_second",
           "output_tokens_per_second", "tokens_per_second")


def error(text):
    last = text.strip().splitlines()[-1] if text else ""
    return re.sub(r"http://[0-9.:]+", "http://server", last)


def write(d):
    print(json.dumps(d))


if kind == "aiperf":
    for line in open(path):
        d = json.loads(line)
        d["metrics"] = {k: v for k, v in d["metrics"].items() if not k.startswith("http_req") and "throughput" not in k}
        d["metadata"] = {k: v for k, v in d["metadata"].items() if k not in ("worker_id", "record_processor_id", "root_correlation_id", "x_correlation_id")}
        print(json.dumps(d, separators=(",", ":")))
    sys.exit()
d = json.load(open(path))
if kind == "vllm":
    d["tokenizer_id"] = "/models/llama"
    d["generated_texts"] = ["(text)" if t else t for t in d["generated_texts"]]
    d["errors"] = [error(e) for e in d["errors"]]
elif kind == "aiperf-summary":
    keep = ("schema_version", "aiperf_version", "request_throughput", "request_latency", "request_count", "error_request_count", "time_to_first_token",
            "time_to_second_token", "inter_token_latency", "inter_chunk_latency", "output_token_throughput", "output_token_throughput_per_user",
            "benchmark_duration", "total_isl", "total_osl")
    d = {k: d[k] for k in keep if k in d}
elif kind == "guidellm":
    d["metadata"]["platform"] = ""
    b = d["config"]["spec"]["backend"]
    d["config"] = {"spec": {"backend": {k: b[k] for k in ("kind", "model", "request_format")}}}
    for b in d["benchmarks"]:
        del b["config"]
        b["metrics"] = {k: {"successful": {s: b["metrics"][k]["successful"][s] for s in ("mean", "median", "std_dev", "percentiles", "count")}} for k in FIGURES}
        for r in [r for l in b["requests"].values() if l for r in l]:
            if r["request_args"]:
                a = json.loads(r["request_args"])
                a["body"] = {k: "(text)" if k in ("prompt", "messages") else v for k, v in a["body"].items()}
                r["request_args"] = json.dumps(a)
            r["output"] = "(text)" if r["output"] else r["output"]
            r["info"]["error"], r["info"]["traceback"] = r["info"]["error"] and error(r["info"]["error"]), None
            for k in ("input_metrics", "output_metrics"):
                r[k] = {n: v for n, v in r[k].items() if v is not None}
write(d)
