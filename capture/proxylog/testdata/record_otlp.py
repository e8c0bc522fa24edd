"""Writes otel.jsonl beside this file: GenAI spans of the OpenTelemetry SDK as OTLP/JSON, one message a line, as the Collector's
file exporter writes them: new names, old names, an agent's span around them, an error.

    pip install opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-common==1.45.2; python3 record_otlp.py FILE
"""
import json, sys, time

from google.protobuf.json_format import MessageToDict
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

out = open(sys.argv[1], "w")


class ToFile(SpanExporter):
    def export(self, spans):
        out.write(json.dumps(MessageToDict(encode_spans(spans)), separators=(",", ":")) + "\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
t = provider.get_tracer("an-app")
with t.start_as_current_span("invoke_agent helper", attributes={"gen_ai.operation.name": "invoke_agent"}):
    with t.start_as_current_span("chat m", attributes={
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m", "gen_ai.response.model": "m-1",
        "gen_ai.usage.input_tokens": 120, "gen_ai.usage.output_tokens": 30, "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.request.max_tokens": 100, "gen_ai.request.stream": True, "gen_ai.response.time_to_first_chunk": 0.004,
        "gen_ai.conversation.id": "conversation-1", "gen_ai.response.finish_reasons": ["stop"],
    }):
        time.sleep(0.02)
    with t.start_as_current_span("execute_tool look", attributes={"gen_ai.operation.name": "execute_tool"}):
        time.sleep(0.002)
    with t.start_as_current_span("chat m", attributes={
        "gen_ai.operation.name": "chat", "gen_ai.system": "openai", "gen_ai.request.model": "m",
        "gen_ai.usage.prompt_tokens": 150, "gen_ai.usage.completion_tokens": 10, "gen_ai.conversation.id": "conversation-1",
        "gen_ai.input.messages": "an invented question about nothing",
    }):
        time.sleep(0.01)
try:
    with t.start_as_current_span("chat m", attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "error.type": "429"}):
        raise RuntimeError("an invented message")
except RuntimeError:
    pass
