"""The model provider of the benchmarks: answers every chat at once, or as 64 chunks at 20 ms.

What it sends depends on the request's model (the last part of its name) and on `stream`:

    instant    stream=false  one fixed JSON answer of about 20 tokens
               stream=true   the same text in one chunk, written at once with finish, usage and [DONE]
    instant20  stream=true   the same text in 20 chunks, written at once
    stream     stream=true   64 chunks, each at least 20 ms after the one before

Run: python -m bench.upstream PORT
"""

import asyncio
import sys
from typing import cast

import msgspec
import uvloop

CHUNK_COUNT = 64
CHUNK_GAP_S = 0.020
WORDS = (
    "Headwater", " answers", " this", " benchmark", " with", " the", " same", " short", " sentence", " every", " time",
    ",", " so", " that", " only", " the", " gateway", " is", " measured", ".",
)  # fmt: skip
INSTANT_TEXT = "".join(WORDS)
STREAM_PARTS = tuple(f" tok{i}" for i in range(CHUNK_COUNT))
STREAM_TEXT = "".join(STREAM_PARTS)
END = b"0\r\n\r\n"


class StreamOptions(msgspec.Struct):
    """The one stream option that changes what is sent."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """The part of a chat request this upstream looks at; other fields are skipped."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None


def framed(body: bytes) -> bytes:
    """One chunk of HTTP/1.1 chunked encoding."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def event(model: str, choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
    """One chat.completion.chunk as a chunk of server-sent events."""
    chunk: dict[str, object] = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "choices": choices,
    }
    if usage is not None:
        chunk["usage"] = usage
    return framed(b"data: " + msgspec.json.encode(chunk) + b"\n\n")


def content(model: str, text: str) -> bytes:
    """A chunk that carries text."""
    return event(model, [{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def usage_of(completion_tokens: int) -> dict[str, int]:
    """The usage block; the prompt of the benchmarks counts 31 tokens."""
    return {"prompt_tokens": 31, "completion_tokens": completion_tokens, "total_tokens": 31 + completion_tokens}


def ending(model: str, completion_tokens: int, *, with_usage: bool) -> bytes:
    """The finish chunk, the usage chunk when asked for, [DONE] and the end of the HTTP body."""
    finish = event(model, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
    usage = event(model, [], usage_of(completion_tokens)) if with_usage else b""
    return finish + usage + framed(b"data: [DONE]\n\n") + END


def json_answer() -> bytes:
    """The whole HTTP answer to a chat that doesn't stream."""
    body = msgspec.json.encode(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "instant",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": INSTANT_TEXT, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": usage_of(len(WORDS)),
        }
    )
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
JSON_ANSWER = json_answer()
GET_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"
AT_ONCE = {
    (model, with_usage): STREAM_HEAD
    + b"".join(content(model, part) for part in parts)
    + ending(model, len(WORDS), with_usage=with_usage)
    for model, parts in (("instant", (INSTANT_TEXT,)), ("instant20", WORDS))
    for with_usage in (False, True)
}
SPACED = tuple(content("stream", part) for part in STREAM_PARTS)
SPACED_END = {with_usage: ending("stream", CHUNK_COUNT, with_usage=with_usage) for with_usage in (False, True)}


class Upstream(asyncio.Protocol):
    """One connection; requests on it are answered in turn."""

    def __init__(self, decoder: msgspec.json.Decoder[ChatRequest]) -> None:
        self.decoder = decoder
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        while (head_end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:head_end].lower()
            body_start = head_end + 4
            if b"transfer-encoding: chunked" in head:  # no benchmark subject sends one; a body we can't frame ends here
                self.transport.close()
                return
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < body_start + length:
                return
            body, self.buffer = self.buffer[body_start : body_start + length], self.buffer[body_start + length :]
            if head.startswith(b"get"):
                self.transport.write(GET_ANSWER)
            else:
                self.answer(self.decoder.decode(body))

    def answer(self, request: ChatRequest) -> None:
        """Send what the request's model stands for."""
        model = request.model.rsplit("/", 1)[-1]
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        if not request.stream:
            self.transport.write(JSON_ANSWER)
        elif model == "stream":
            self.transport.write(STREAM_HEAD)
            self.send(0, with_usage)
        else:
            self.transport.write(AT_ONCE[model, with_usage])

    def send(self, index: int, with_usage: bool) -> None:
        """Write chunk `index` and ask to be called for the next; the finish follows the last at once."""
        if self.transport.is_closing():
            return
        self.transport.write(SPACED[index])
        if index + 1 < CHUNK_COUNT:
            self.loop.call_later(CHUNK_GAP_S, self.send, index + 1, with_usage)
        else:
            self.loop.call_later(CHUNK_GAP_S, self.transport.write, SPACED_END[with_usage])


async def serve(port: int) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    decoder = msgspec.json.Decoder(ChatRequest)
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(decoder), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
