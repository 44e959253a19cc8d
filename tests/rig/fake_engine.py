"""A fake engine that is a real program: it speaks the OpenAI wire, is deterministic, and writes down its own truth.

    python -m tests.rig.fake_engine --listen 127.0.0.1:0 --truth truth.jsonl [--slots 4] [--api-key K]

It prints one JSON line with its address when it is ready. POST /v1/chat/completions · GET /v1/models, /health, /slots,
/truth (its log so far) · POST /knobs (change the defaults; null takes one back), DELETE /knobs · POST /step (permits
for streams with the knob `step`). `expected` and `prompt_tokens` are the oracle.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from tests.rig import wire
from tests.rig.answer import JSON, Answer
from tests.rig.http1 import Connection, HttpRequest
from tests.rig.knobs import KnobError, make_knobs, parse_knobs, split_model
from tests.rig.oracle import Expected, compose, digest, expected, id_of, prompt_tokens
from tests.rig.slots import Slots
from tests.rig.truth import TruthLog

__all__ = ["Expected", "FakeEngine", "expected", "main", "prompt_tokens"]
HEADERS_OF_INTEREST = ("x-request-id", "user-agent", "accept", "content-type", "x-fake-knobs", "traceparent")


class FakeEngine:
    """The engine's state and its routes. One event loop owns it."""

    def __init__(
        self, log: TruthLog, *, slots_count: int, api_key: str | None, knobs: dict[str, Any], models: list[str]
    ) -> None:
        """knobs: the defaults that requests start from."""
        make_knobs(knobs)  # a bad default stops the start
        self.log, self.slots, self.api_key, self.models = log, Slots(slots_count), api_key, models
        self.default_knobs = knobs
        self.connections: set[Connection] = set()
        self._answers: dict[int, Answer] = {}
        self._serial = 0

    def handle(self, request: HttpRequest, conn: Connection) -> Coroutine[Any, Any, None]:
        """Return the coroutine that answers one request."""
        path = request.path.partition("?")[0].removeprefix("/v1")
        if request.method == "POST" and path == "/chat/completions":
            return self._chat(request, conn)
        return self._side(request.method, path, request, conn)

    async def _chat(self, request: HttpRequest, conn: Connection) -> None:
        try:
            body = msgspec.json.decode(request.body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            await self._json(conn, wire.error(str(error), type_="invalid_request_error", code=400), 400)
            return
        self._serial += 1
        serial = self._serial
        request_id = request.headers.get("x-request-id") or id_of(body)
        self._log_received(serial, request_id, request, body)
        of_header = parse_knobs(request.headers.get("x-fake-knobs", ""))
        of_model = split_model(str(body.get("model", "")))[1]
        try:
            knobs = make_knobs(self.default_knobs, of_header, of_model)
            answer_to_be = compose(request_id, body, knobs)
        except KnobError as error:
            self.log.write("fault", serial, fault="bad_knobs", tokens_sent=0)
            await self._json(conn, wire.error(f"Bad knobs: {error}", type_="invalid_request_error", code=400), 400)
            self.log.write("closed", serial, tokens_sent=0, token_times_ns=[])
            return
        is_authorized = self.api_key is None or request.headers.get("authorization") == f"Bearer {self.api_key}"
        answer = Answer(
            serial=serial,
            conn=conn,
            body=body,
            knobs=knobs,
            expected=answer_to_be,
            log=self.log,
            slots=self.slots,
            is_authorized=is_authorized,
        )
        self._answers[serial] = answer
        try:
            await answer.run()
        finally:
            del self._answers[serial]

    def _log_received(self, serial: int, request_id: str, request: HttpRequest, body: dict[str, Any]) -> None:
        asked = ("timings_per_token", "return_progress", "stream_options", "logprobs", "n", "id_slot", "cache_prompt")
        caps = ("max_tokens", "max_completion_tokens", "n_predict")
        self.log.write(
            "received",
            serial,
            request_id=request_id,
            stream=bool(body.get("stream")),
            model=body.get("model"),
            digest=digest(body),
            prompt_tokens=prompt_tokens(body.get("messages", ())),
            has_authorization="authorization" in request.headers,
            headers={name: request.headers[name] for name in HEADERS_OF_INTEREST if name in request.headers},
            **{name: body.get(name) for name in asked + caps},
        )

    async def _side(self, method: str, path: str, request: HttpRequest, conn: Connection) -> None:
        match method, path:
            case "GET", "/health":
                await self._json(conn, {"status": "ok"})
            case "GET", "/models":
                models = [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in self.models]
                await self._json(conn, {"object": "list", "data": models})
            case "GET", "/slots":
                await self._json(conn, self._slot_states())
            case "GET", "/truth":
                await conn.answer(200, self.log.path.read_bytes(), {"content-type": "application/x-ndjson"})
            case (("POST" | "DELETE"), "/knobs"):
                await self._change_knobs({} if method == "DELETE" else self.default_knobs, request, conn)
            case "POST", "/step":
                await self._json(conn, {"attempts": self._step(msgspec.json.decode(request.body or b"{}"))})
            case _:
                await self._json(
                    conn, wire.error(f"No such path: {method} {path}", type_="not_found_error", code=404), 404
                )

    def _slot_states(self) -> list[dict[str, Any]]:
        count = self.slots.count or max(self.slots.busy, default=-1) + 1
        states: list[dict[str, Any]] = [{"id": slot, "is_processing": False} for slot in range(count)]
        for slot, serial in self.slots.busy.items():
            answer = self._answers.get(serial)
            if answer is not None and slot < count:
                states[slot] = {
                    "id": slot,
                    "is_processing": True,
                    "id_task": serial,
                    "request_id": answer.expected.request_id,
                    "phase": answer.phase,
                    "n_decoded": len(answer.token_times_ns),
                }
        return states

    async def _change_knobs(self, base: dict[str, Any], request: HttpRequest, conn: Connection) -> None:
        changed = base | msgspec.json.decode(request.body or b"{}", type=dict[str, Any])
        try:
            knobs = make_knobs(changed)
        except KnobError as error:
            await self._json(conn, wire.error(f"Bad knobs: {error}", type_="invalid_request_error", code=400), 400)
            return
        self.default_knobs = {name: value for name, value in changed.items() if value is not None}
        await self._json(conn, msgspec.to_builtins(knobs))

    def _step(self, order: dict[str, Any]) -> int:
        """Permit `tokens` (default 1) to all stepping attempts, or to those of `request_id`; returns how many."""
        wanted = order.get("request_id")
        stepping = [a for a in self._answers.values() if a.knobs.step and wanted in (None, a.expected.request_id)]
        for answer in stepping:
            for _ in range(int(order.get("tokens", 1))):
                answer.steps.release()
        return len(stepping)

    async def _json(self, conn: Connection, value: object, status: int = 200) -> None:
        await conn.answer(status, msgspec.json.encode(value), JSON)

    async def stop(self) -> None:
        """Cancel what runs; every attempt is closed in the log before this returns."""
        tasks = [conn.task for conn in self.connections if conn.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve(engine: FakeEngine, listen: str, *, is_stopped_by_eof: bool) -> None:
    """Serve until SIGTERM, SIGINT or the end of standard input. listen: `host:port` (0: a free one) or `unix:/path`."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if is_stopped_by_eof:
        loop.add_reader(sys.stdin.fileno(), lambda: stopped.set() if not os.read(0, 4096) else None)

    def accept() -> Connection:
        return Connection(engine.handle, engine.connections)

    ready: dict[str, object] = {"ready": True, "pid": os.getpid()}
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        server = await loop.create_unix_server(accept, path, backlog=1024)
        ready |= {"address": listen, "unix": path, "base_url": "http://engine/v1"}
    else:
        host, _, port = listen.rpartition(":")
        server = await loop.create_server(accept, host, int(port), backlog=1024)
        address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
        ready |= {"address": address, "unix": None, "base_url": f"http://{address}/v1"}
    print(msgspec.json.encode(ready).decode(), flush=True)
    await stopped.wait()
    server.close()
    await engine.stop()


def main(argv: list[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="tests.rig.fake_engine", description="A fake engine for tests; see docs/explanation/test-rig.md"
    )
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port (0: a free port) or unix:/path")
    parser.add_argument("--truth", type=Path, required=True, help="the JSON lines file to append to")
    parser.add_argument("--api-key", help="the only bearer that is let in; without it everyone is")
    parser.add_argument("--default-knobs", default="{}", help="a JSON object of knobs")
    parser.add_argument("--slots", type=int, default=0, help="requests worked on at once; 0: no bound")
    parser.add_argument("--models", default="fake", help="names that GET /v1/models lists, separated by commas")
    parser.add_argument(
        "--stop-on-eof", action="store_true", help="end when standard input does, so as not to be orphaned"
    )
    options = parser.parse_args(argv)
    log = TruthLog(options.truth)
    try:
        engine = FakeEngine(
            log,
            slots_count=options.slots,
            api_key=options.api_key,
            knobs=msgspec.json.decode(options.default_knobs, type=dict[str, Any]),
            models=options.models.split(","),
        )
    except KnobError as error:
        print(f"Bad --default-knobs: {error}", file=sys.stderr)
        return 2
    with contextlib.closing(log):
        _run(serve(engine, options.listen, is_stopped_by_eof=options.stop_on_eof))
    return 0


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(coroutine)
    else:
        uvloop.run(coroutine)


if __name__ == "__main__":
    sys.exit(main())
