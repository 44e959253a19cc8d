"""Payloads for the tests of what engines are sent."""

import json
from typing import Any

from headwater.request import Chat, FunctionCall, Message, ResponseFormat, Sampling, Tool, ToolCall, ToolChoice

WEATHER = Tool(
    name="weather",
    description="Of a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    is_strict=True,
)
PLAIN = Tool(name="now")
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}}

FULL = Chat(
    messages=(
        Message(role="system", content="Be short."),
        Message(role="user", content="Weather?", name="ann"),
        Message(
            role="assistant",
            tool_calls=(ToolCall("call_1", FunctionCall("weather", '{"city":"Zürich"}')),),
            reasoning="I must look.",
        ),
        Message(role="tool", content="rain", tool_call_id="call_1"),
    ),
    tools=(WEATHER, PLAIN),
    tool_choice=ToolChoice("auto"),
    is_parallel_tool_calls=False,
    response_format=ResponseFormat(kind="json_schema", schema=SCHEMA, schema_name="verdict", is_strict=True),
    sampling=Sampling(
        temperature=0.0, top_p=0.5, presence_penalty=-1.0, frequency_penalty=1.5, seed=0, logit_bias={"50256": -100.0}
    ),
    stop=("\n\n", "END"),
    output_tokens_max=77,
    choices_count=4,
    logprobs_top_count=0,
)
SMALL = Chat(messages=(Message(role="user", content="hi"),), output_tokens_max=16)

MESSAGES_WIRE = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Weather?", "name": "ann"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}}
        ],
        "reasoning_content": "I must look.",
    },
    {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
]
TOOLS_WIRE = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a city.",
            "parameters": WEATHER.parameters,
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
COMMON_WIRE: dict[str, Any] = {
    "messages": MESSAGES_WIRE,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 77,
    "temperature": 0.0,
    "top_p": 0.5,
    "presence_penalty": -1.0,
    "frequency_penalty": 1.5,
    "seed": 0,
    "logit_bias": {"50256": -100.0},
    "stop": ["\n\n", "END"],
    "logprobs": True,
    "top_logprobs": 0,
}


def wire(body: bytes) -> dict[str, Any]:
    """A body as the engine reads it."""
    decoded: dict[str, Any] = json.loads(body)
    return decoded
