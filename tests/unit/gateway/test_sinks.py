import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from headwater.dialects.openai_chat_answer import AnswerCollector, AnswerHead, StreamWriter
from headwater.errors import AuthenticationFailed, EngineFailed, Overloaded
from headwater.events import Event, Finished, Progress, Reasoning, Started, Text, ToolCallDelta, UsageReport
from headwater.gateway.deadline import Deadline
from headwater.gateway.sinks import ANSWER_CHARACTERS_MAX, StreamSink, WholeSink, send_error
from headwater.usage import Usage
from tests.unit.gateway.fake_time import run

HEAD = AnswerHead("chatcmpl-1", 1_780_000_000, "m")
ID_HEADER = (b"x-request-id", b"req_1")
USAGE = Usage(uncached_input=3, output=2)


class Client:
    """What arrives at a client's socket; `blocks` stands for one that doesn't read."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.blocks = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.blocks:
            await asyncio.Event().wait()
        self.messages.append(dict(message))

    @property
    def status(self) -> int:
        [start] = [message for message in self.messages if message["type"] == "http.response.start"]
        assert self.messages[0] is start
        status: int = start["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def is_complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    @property
    def events(self) -> list[Any]:
        """The payloads of the stream; `[DONE]` as that text."""
        payloads = [line[6:] for line in self.body.decode().split("\n\n") if line]
        return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def stream(client: Client, *, include_usage: bool = False, on_stall: Any = lambda: None) -> StreamSink:
    """A streaming sink; needs a running loop."""
    stall = Deadline(asyncio.get_running_loop(), 30, on_stall)
    return StreamSink(
        client.send, StreamWriter(HEAD, include_usage), [ID_HEADER], include_usage=include_usage, stall=stall
    )


def whole(client: Client, choices_count: int = 1) -> WholeSink:
    return WholeSink(client.send, AnswerCollector(HEAD, choices_count), [ID_HEADER])


def deltas(client: Client) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in client.events if chunk != "[DONE]" and chunk["choices"]]


@pytest.mark.parametrize("content", [Text("a"), Reasoning("a"), ToolCallDelta(0, "call_1", "f", "{}")])
def test_content_goes_out_at_once_and_the_role_before_it(content: Event) -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client)
        await sink.take(0, [Started(), Progress(1, 2, 0)])
        assert client.messages == []
        assert not sink.has_content
        await sink.take(0, [content])
        assert sink.has_content
        assert client.status == 200
        assert client.headers[b"content-type"].startswith(b"text/event-stream")
        assert client.headers[ID_HEADER[0]] == ID_HEADER[1]
        assert deltas(client)[0] == {"role": "assistant", "content": ""}
        assert len(deltas(client)) == 2
        assert not client.is_complete

    run(work())


def test_what_came_together_is_one_write() -> None:
    async def work() -> None:
        client = Client()
        await stream(client).take(0, [Text("a"), Text("b"), Text("c")])
        assert len(client.messages) == 2  # the head, one body
        assert [delta["content"] for delta in deltas(client)] == ["", "a", "b", "c"]

    run(work())


def test_the_finish_and_all_after_it_are_held_until_the_settlement_has_committed() -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client, include_usage=True)
        await sink.take(0, [Text("a")])
        before = client.body
        await sink.take(0, [Finished("stop"), UsageReport(USAGE, is_final=True)])
        assert client.body == before
        await sink.finish(USAGE)
        assert client.is_complete
        *_, finish, usage, done = client.events
        assert finish["choices"][0]["finish_reason"] == "stop"
        assert usage["usage"]["total_tokens"] == 5
        assert done == "[DONE]"

    run(work())


def test_content_and_finish_of_one_batch_are_parted() -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client)
        await sink.take(0, [Text("a"), Finished("length")])
        assert b"length" not in client.body
        assert b'"a"' in client.body
        await sink.finish(USAGE)
        assert client.events[-1] == "[DONE]"
        assert b'"finish_reason":"length"' in client.body

    run(work())


def test_usage_is_sent_only_if_asked_for() -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client)
        await sink.take(0, [Text("a"), Finished("stop")])
        await sink.finish(USAGE)
        assert b"total_tokens" not in client.body

    run(work())


def test_every_choice_has_its_role_and_its_finish_even_one_without_content() -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client)
        await sink.take(1, [Text("b")])
        await sink.take(0, [Text("a"), Finished("stop")])
        await sink.take(2, [Finished("stop")])
        await sink.take(1, [Finished("length")])
        await sink.finish(USAGE)
        seen: dict[int, list[str]] = {}
        for chunk in client.events[:-1]:
            [choice] = chunk["choices"]
            delta = choice["delta"]
            what = "role" if "role" in delta else delta.get("content") or choice["finish_reason"]
            seen.setdefault(choice["index"], []).append(what)
        assert seen == {0: ["role", "a", "stop"], 1: ["role", "b", "length"], 2: ["role", "stop"]}

    run(work())


def test_an_answer_without_content_still_begins_and_ends() -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client)
        await sink.take(0, [Finished("stop")])
        assert client.messages == []
        await sink.finish(USAGE)
        assert client.status == 200
        assert client.is_complete
        assert client.events[-1] == "[DONE]"

    run(work())


def test_an_error_before_content_is_an_answer_with_its_status() -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client)
        await sink.take(0, [Started(), Finished("stop")])
        await sink.fail(EngineFailed("no"))
        assert client.status == 502
        assert client.is_complete
        assert json.loads(client.body)["error"]["code"] == "engine_failed"
        assert client.headers[b"content-type"] == b"application/json"
        assert int(client.headers[b"content-length"]) == len(client.body)

    run(work())


def test_an_error_after_content_is_the_last_event_without_finish_and_without_done() -> None:
    async def work() -> None:
        client = Client()
        sink = stream(client)
        await sink.take(0, [Text("a"), Finished("stop")])
        await sink.fail(EngineFailed("no"))
        assert client.status == 200
        assert client.is_complete
        assert client.events[-1] == {
            "error": {"message": "no", "type": "server_error", "param": None, "code": "engine_failed"}
        }
        assert b"[DONE]" not in client.body
        assert b'"finish_reason":"stop"' not in client.body

    run(work())


def test_only_a_write_that_blocks_runs_the_stall_time_out() -> None:
    async def work() -> None:
        stalled: list[float] = []
        loop = asyncio.get_running_loop()
        client = Client()
        sink = stream(client, on_stall=lambda: stalled.append(loop.time()))
        await sink.take(0, [Text("a")])
        await asyncio.sleep(500)  # the engine thinks; the client is not to blame
        assert stalled == []
        client.blocks = True
        began_s = loop.time()
        blocked = asyncio.ensure_future(sink.take(0, [Text("b")]))
        await asyncio.sleep(100)
        assert stalled == [began_s + 30]
        blocked.cancel()

    run(work())


def test_a_whole_answer_writes_nothing_before_its_settlement() -> None:
    async def work() -> None:
        client = Client()
        sink = whole(client)
        await sink.take(0, [Started(), Text("a"), Text("b"), Finished("stop"), UsageReport(USAGE, is_final=True)])
        assert client.messages == []
        await sink.finish(USAGE)
        assert client.status == 200
        body = json.loads(client.body)
        assert body["choices"][0]["message"]["content"] == "ab"
        assert body["usage"]["completion_tokens"] == 2
        assert int(client.headers[b"content-length"]) == len(client.body)
        assert client.is_complete

    run(work())


def test_a_whole_answer_that_fails_is_the_error_alone() -> None:
    async def work() -> None:
        client = Client()
        sink = whole(client)
        await sink.take(0, [Text("secret half of an answer")])
        await sink.fail(EngineFailed("no"))
        assert client.status == 502
        assert b"secret" not in client.body

    run(work())


@pytest.mark.parametrize(("given", "sent"), [(0.2, b"1"), (7.4, b"7"), (30, b"30"), (None, None)])
def test_retry_after_is_whole_seconds_and_never_0(given: float | None, sent: bytes | None) -> None:
    async def work() -> None:
        client = Client()
        await send_error(client.send, Overloaded("full", retry_after_s=given), [ID_HEADER])
        assert client.status == 503
        assert client.headers.get(b"retry-after") == sent
        assert client.headers[ID_HEADER[0]] == ID_HEADER[1]

    run(work())


def test_a_401_says_how_to_authenticate() -> None:
    async def work() -> None:
        client = Client()
        await send_error(client.send, AuthenticationFailed("no"), [])
        assert client.headers[b"www-authenticate"] == b"Bearer"

    run(work())


@pytest.mark.parametrize("content", [Text, Reasoning, lambda text: ToolCallDelta(0, arguments=text)])
async def test_an_answer_beyond_any_bound_is_not_gathered(content: Any) -> None:
    sink = whole(Client())
    part = content("x" * (ANSWER_CHARACTERS_MAX // 2))
    await sink.take(0, [part, part])
    with pytest.raises(EngineFailed, match="cut off"):
        await sink.take(0, [content("x")])
