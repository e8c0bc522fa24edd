"""How fast the public simulator Vidur is on an Azure trace, beside `replay --virtual`.

Its profiles of models and GPUs are not in its package, and what they say does not matter to its
speed: the pass times are those of the simulated engine's preset llama-3-8b@h100.

    python3.11 -m venv VENV && VENV/bin/pip install vidur==0.0.26     # 2 GB of dependencies
    VENV/bin/python testdata/bench/vidur.py AzureLLMInferenceTrace_conv.csv 2000 3
    time GOMAXPROCS=1 bin/replay AzureLLMInferenceTrace_conv.csv --virtual --limit 2000 --speedup 3 --chunks off --too-long skip -o RUN

The arguments are the trace, the number of requests and the speed-up. It writes into the current folder.
"""

import sys
import time

import pandas as pd
from vidur.config import SimulationConfig
from vidur.execution_time_predictor.sklearn_execution_time_predictor import SklearnExecutionTimePredictor as Predictor
from vidur.simulator import Simulator
from vidur.utils.random import set_seeds

csv, n, speedup = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rows = pd.read_csv(csv).iloc[:n]
at = pd.to_datetime(rows["TIMESTAMP"])
pd.DataFrame(
    {
        "Date": "2023-11-16",
        "Time": (at - at.iloc[0]).dt.total_seconds() / speedup,
        "PromptTokenCount": rows["ContextTokens"],
        "CompletionTokenCount": rows["GeneratedTokens"].clip(lower=2),
    }
).to_csv("vidur-trace.csv", index=False)

LAYERS = 32
LINEAR = (
    "attn_pre_proj attn_post_proj mlp_up_proj mlp_down_proj mlp_act attn_rope attn_kv_cache_save "
    "input_layernorm post_attention_layernorm add"
).split()


def tables(self):
    """Milliseconds of one layer, in place of predictions from the hub."""
    c = self._config
    kvs = range(0, c.prediction_max_tokens_per_request + 1, c.kv_cache_prediction_granularity)
    p = {
        name: {(k,): max(6.52, 0.0217 * k) / LAYERS / len(LINEAR) for k in range(1, self._max_tokens + 1)}
        for name in LINEAR
    }
    p["attn_prefill"] = {
        (kv, q): 1.05e-6 * (q * kv + q * q / 2) / LAYERS
        for kv in kvs
        for q in range(32, c.prediction_max_prefill_chunk_size + 1, 32)
    }
    p["attn_decode"] = {
        (b, kv): 49e-6 * b * kv / LAYERS for b in range(1, c.prediction_max_batch_size + 1) for kv in kvs
    }
    return p


Predictor._load_predictions_from_hf = tables

forest = "--random_forrest_execution_time_predictor_config_"
trace = "--trace_request_generator_config_"
sys.argv = f"""vidur --replica_config_num_pipeline_stages 1 --replica_config_tensor_parallel_size 1
  --request_generator_config_type TRACE_REPLAY {trace}trace_file vidur-trace.csv {trace}date 2023-11-16
  {trace}prefill_scale_factor 1 {trace}time_scale_factor 1 {trace}max_tokens 16384
  --replica_scheduler_config_type SARATHI --sarathi_scheduler_config_chunk_size 8192 --sarathi_scheduler_config_batch_size_cap 256
  {forest}prediction_max_tokens_per_request 16384 {forest}prediction_max_prefill_chunk_size 8192
  {forest}prediction_max_batch_size 256 {forest}no_cache
  --no-metrics_config_enable_chrome_trace --no-metrics_config_store_plots""".split()
config = SimulationConfig.create_from_cli_args()
set_seeds(config.seed)
simulator = Simulator(config)  # and its tables: not counted
begin, cpu = time.time(), time.process_time()
simulator.run()
cpu = time.process_time() - cpu
print(f"{n} requests, {simulator._time:.0f} s simulated in {time.time() - begin:.1f} s, {cpu:.1f} CPU s: {n / cpu:.0f} requests a CPU second")
