"""Any OpenAI-compatible upstream: a chat payload becomes the body of `POST {base_url}/chat/completions`. Pure."""

from typing import Any, Literal

import msgspec

from headwater.request import Chat, Message, ResponseFormat, Tool, ToolChoice

OutputCapField = Literal["max_tokens", "max_completion_tokens"]
RunningCounts = Literal["none", "continuous_usage_stats", "timings_per_token"]

_encoder = msgspec.json.Encoder()


def encode(
    chat: Chat, *, model: str, output_cap_field: OutputCapField = "max_tokens", running_counts: RunningCounts = "none"
) -> bytes:
    """The body of one single-choice streamed call; n and streaming are the platform's business, never the upstream's.

    chat.output_tokens_max must have been decided by then. running_counts: what the upstream understands beyond the
    closing usage chunk, so that a cut stream is billed by its own count.
    """
    body = chat_body(chat, output_cap_field=output_cap_field)
    body["model"] = model
    if chat.tools:
        body["tools"] = [tool_wire(tool) for tool in chat.tools]
        body["tool_choice"] = _tool_choice(chat.tool_choice)
        if chat.is_parallel_tool_calls is not None:
            body["parallel_tool_calls"] = chat.is_parallel_tool_calls
    if chat.response_format.kind != "text":
        body["response_format"] = response_format_wire(chat.response_format)
    if running_counts == "continuous_usage_stats":
        body["stream_options"]["continuous_usage_stats"] = True
    elif running_counts == "timings_per_token":
        body["timings_per_token"] = True
    return _encoder.encode(body)


def chat_body(chat: Chat, *, output_cap_field: OutputCapField) -> dict[str, Any]:
    """What every engine of this wire understands alike: messages, sampling, bounds, streaming with a closing usage."""
    body: dict[str, Any] = {
        "messages": [message_wire(message) for message in chat.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        output_cap_field: chat.output_tokens_max,
        **msgspec.structs.asdict(chat.sampling),
    }
    if chat.stop:
        body["stop"] = chat.stop
    if chat.logprobs_top_count is not None:
        body["logprobs"] = True
        body["top_logprobs"] = chat.logprobs_top_count
    return {key: value for key, value in body.items() if value is not None}


def message_wire(message: Message) -> dict[str, Any]:
    """One message in the wire's shape."""
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        wire["name"] = message.name
    if message.tool_calls:
        wire["tool_calls"] = message.tool_calls
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        wire["reasoning_content"] = message.reasoning
    return wire


def tool_wire(tool: Tool) -> dict[str, Any]:
    """One declared function in the wire's shape."""
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.is_strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def response_format_wire(format_: ResponseFormat) -> dict[str, Any]:
    """The wished form of the answer in the wire's shape."""
    if format_.kind != "json_schema":
        return {"type": format_.kind}
    schema = {"name": format_.schema_name or "answer", "schema": format_.schema, "strict": format_.is_strict}
    return {"type": "json_schema", "json_schema": schema}


def _tool_choice(choice: ToolChoice) -> object:
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode
