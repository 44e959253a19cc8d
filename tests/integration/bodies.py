"""The requests that the integration tests send."""

from typing import Any

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two three"}]
PROMPT_TOKENS = 11  # as the fake engine counts: 3 a message and one for each word
LOOKUP_TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}, "limit": {"type": "integer", "minimum": 1}},
            "required": ["word"],
        },
    },
}


def chat_body(model: str, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """A small chat request; streaming ones ask for the usage."""
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"model": model, "messages": MESSAGES, "stream": stream} | options | fields
