"""Errors inside a 200, in every shape that engines and providers send them: each ends the call, none looks like an end."""

import pytest

from headwater.engines.openai_stream import OpenAIStreamDecoder
from headwater.errors import EngineFailed
from headwater.events import Failed, Finished

SHAPES = {
    "OpenAI": b'data: {"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}',
    "vLLM": b'data: {"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}',
    "vLLM before 0.11": b'data: {"object":"error","message":"boom","type":"InternalServerError","param":null,"code":500}',
    "SGLang": b'data: {"error":{"object":"error","message":"boom","type":"InternalServerError","code":500}}',
    "SGLang, aborted": b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}',
    "llama.cpp": b'data: {"error":{"code":500,"message":"boom","type":"server_error"}}',
    "Anthropic": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
    "OpenRouter": b'data: {"error":{"code":"x","message":"boom"},"choices":[{"delta":{"content":""},"finish_reason":"error"}]}',
    "OpenRouter, short": b'data: {"choices":[{"delta":{"content":""},"finish_reason":"error"}]}',
    "a string": b'data: {"error":"boom"}',
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_error_inside_a_200_is_a_failure(shape: bytes) -> None:
    events = OpenAIStreamDecoder().feed(shape + b"\n\ndata: [DONE]\n\n")
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert isinstance(failed.error, EngineFailed)
    assert "boom" not in failed.error.message, "its words stay inside"
    assert not [event for event in events if isinstance(event, Finished)]


@pytest.mark.parametrize("line", [b'error: {"code":500,"message":"boom"}', b": boom", b"data: {boom"])
def test_what_is_no_event_ends_nothing_by_itself(line: bytes) -> None:
    decoder = OpenAIStreamDecoder()
    events = decoder.feed(line + b'\n\ndata: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
    assert [type(event) for event in events if isinstance(event, Failed | Finished)] == [Finished]
