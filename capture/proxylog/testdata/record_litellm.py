"""Writes litellm.payload.jsonl beside this file: what LiteLLM hands to its logging callbacks (StandardLoggingPayload)
for mocked calls, streamed and not, and for a failure that a second attempt follows. No network is used.

    pip install litellm==1.110.2; python3 record_litellm.py FILE
"""
import asyncio, json, sys

import litellm
from litellm.integrations.custom_logger import CustomLogger

out = open(sys.argv[1], "w")


class Log(CustomLogger):
    def write(self, kwargs):
        p = kwargs.get("standard_logging_object")
        if p:
            out.write(json.dumps(p, default=str) + "\n")

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        self.write(kwargs)

    async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
        self.write(kwargs)


litellm.callbacks = [Log()]
ask = [{"role": "user", "content": "an invented question about nothing"}]


async def main():
    await litellm.acompletion(model="gpt-4o-mini", messages=ask, mock_response="an invented answer", max_tokens=16, user="someone")
    r = await litellm.acompletion(model="gpt-4o-mini", messages=ask, mock_response="an invented answer in pieces", stream=True,
                                  stream_options={"include_usage": True}, litellm_trace_id="trace-streamed")
    async for _ in r:
        await asyncio.sleep(0.01)
    for reply, kind in ((litellm.RateLimitError("slow down", llm_provider="openai", model="gpt-4o-mini"), "error"), ("the second attempt", "text")):
        try:
            await litellm.acompletion(model="gpt-4o-mini", messages=ask, mock_response=reply, litellm_trace_id="trace-retried", num_retries=0)
        except Exception:
            pass
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)


asyncio.run(main())
