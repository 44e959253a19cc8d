"""Clients that keep a platform busy until it ends, and remember what each was told."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.integration.bodies import chat_body
from tests.rig.auditor import Ack
from tests.rig.clients import Client, Received, call
from tests.rig.platform import Platform

ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one client was told of one request. request_id: None when no answer began."""

    request_id: str | None
    is_stream: bool
    status: int | None
    is_complete: bool
    """It was given the end of a good answer: a finish reason, the usage or `[DONE]`, or a whole body with status 200."""
    error_code: str | None
    is_whole: bool
    """The message ended as HTTP messages do."""
    output_tokens: int | None
    at_ns: int
    """When it ended, on the monotonic clock."""

    @classmethod
    def of(cls, got: Received, *, is_stream: bool) -> "Told":
        """Read an answer, whatever is left of it."""
        is_end_seen = got.finish_reason is not None or got.is_done_seen or got.usage is not None
        return cls(
            request_id=got.headers.get("x-request-id"),
            is_stream=is_stream,
            status=got.status,
            is_complete=got.status == 200 and is_end_seen,
            error_code=None if got.error is None else str(got.error.get("code")),
            is_whole=got.ended == "complete",
            output_tokens=None if got.usage is None else got.usage["completion_tokens"],
            at_ns=time.monotonic_ns(),
        )

    @property
    def is_refused(self) -> bool:
        """Whether it was told in so many words that the ledger is gone."""
        return self.is_whole and self.error_code == "ledger_unavailable" and not self.is_complete

    @property
    def is_silent(self) -> bool:
        """Whether an answer began and then ended without its end and without a word of why."""
        return self.status is not None and not self.is_complete and (self.error_code is None or not self.is_whole)

    def ack(self) -> Ack:
        """What the auditor checks of a complete answer."""
        assert self.request_id is not None
        assert self.status is not None
        return Ack(request_id=self.request_id, status=self.status, is_complete=True, output_tokens=self.output_tokens)


@dataclass(slots=True)
class Crowd:
    """Clients of one platform. told: every answer, in the order they ended; ready: what `/ready` said, in order."""

    platform: Platform
    told: list[Told] = field(default_factory=list)
    ready: list[tuple[int, str]] = field(default_factory=list)

    async def ask(self, model: str, *, is_stream: bool) -> Told:
        """Send one request and keep what came."""
        got = Received()
        try:
            body = chat_body(model, stream=is_stream)
            async with await Client.chat(self.platform.base_url, body, api_key=self.platform.key) as client:
                got = client.received
                await client.read_to_end(timeout_s=ANSWER_TIMEOUT_S)
        except OSError:
            pass  # nobody listens any more, or hung up before a byte of the answer: it was told nothing
        told = Told.of(got, is_stream=is_stream)
        self.told.append(told)
        return told

    async def keep_asking(self, model: str, draw: random.Random, is_over: Callable[[], bool]) -> None:
        """Ask again and again, streaming or not, until an answer isn't complete or it is over."""
        while not is_over():
            if not (await self.ask(model, is_stream=draw.random() < 0.5)).is_complete:
                return

    async def watch_ready(self) -> None:
        """Ask `/ready` again and again until nobody answers."""
        while True:
            try:
                got = await call(self.platform.root_url, "GET", "/ready")
            except OSError:
                return
            if got.status is None:
                return
            self.ready.append((got.status, got.body.decode(errors="replace")))
            await asyncio.sleep(0.005)
