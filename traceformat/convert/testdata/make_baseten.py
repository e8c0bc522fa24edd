"""Writes baseten.parquet: python3 make_baseten.py (needs pyarrow)."""

import pyarrow as pa
import pyarrow.parquet as pq

START = 1_750_000_000_000
rows = [
    # Not in order of arrival, as exports of such services are.
    dict(
        timestamp_start_unix_ms=START + 250, prompt="the text of a prompt", input_tokens=130, output_tokens=6,
        total_hashes=[2**63 - 1, 2**53 + 1], block_size=64, provided_session_id="unique-1", poor_man_session_id=7,
        duration_e2e_ms=900, duration_ttft_ms=120, request_canceled=0, cached_tokens_reference=64, model_name="m",
        org_id="org-a", speculation_ratio=1.7, output_text="the text of an answer", __version__="1", features="f1",
        total_hashes_len=2, queue=3,
    ),
    dict(
        timestamp_start_unix_ms=START, prompt="", input_tokens=64, output_tokens=0,
        total_hashes=[5], block_size=64, provided_session_id=None, poor_man_session_id=7,
        duration_e2e_ms=None, duration_ttft_ms=None, request_canceled=1, cached_tokens_reference=None, model_name=None,
        org_id=None, speculation_ratio=None, output_text=None, __version__="1", features=None,
        total_hashes_len=None, queue=0,
    ),
    dict(
        timestamp_start_unix_ms=START + 1000, prompt="x", input_tokens=10, output_tokens=3,
        total_hashes=[], block_size=64, provided_session_id="41", poor_man_session_id=None,
        duration_e2e_ms=5, duration_ttft_ms=4, request_canceled=0, cached_tokens_reference=0, model_name="m",
        org_id="org-b", speculation_ratio=1.0, output_text="", __version__="1", features="f2",
        total_hashes_len=0, queue=1,
    ),
]
pq.write_table(pa.Table.from_pylist(rows), "baseten.parquet", row_group_size=2)
