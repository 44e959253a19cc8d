"""Chat-completion requests for tests: a good one, and ways to spoil it."""

import json
from typing import Any

USER: dict[str, Any] = {"role": "user", "content": "hi"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
}


def body(**changes: Any) -> bytes:
    """A small good request with these fields changed; a field set to `...` is left out."""
    fields = {"model": "m", "messages": [USER]} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def with_message(**message: Any) -> bytes:
    """A request whose one message is this."""
    return body(messages=[message])


def with_parameters(parameters: Any) -> bytes:
    """A request with one tool of these parameters."""
    return body(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])


def nested(depth: int) -> Any:
    """A JSON schema whose JSON is `depth` levels deep."""
    schema: Any = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema
