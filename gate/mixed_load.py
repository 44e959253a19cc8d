"""Clients of every kind, who write down what they were told: streaming or not, staying or leaving, under idempotency keys."""

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from tests.integration.bodies import chat_body
from tests.rig.auditor import Ack
from tests.rig.clients import Client, Received

SHORT = ("m:gap_ms=2", "m:reasoning=3,cached=4,gap_ms=1", "m:tokens=20,gap_ms=3", "m:batch=3", "m:tokens=2")
LONG = "m:tokens=4000,gap_ms=2"
"""A stream that is marked twice a second while it runs."""
FAULTY = (
    *("m:tokens=9,cut_after=4", "m:tokens=9,error_in_200_after=2", "m:tokens=9,stall_after=5", "m:tokens=9,no_usage"),
    *(
        "m:tokens=9,usage_negative",
        "m:tokens=9,usage_absurd",
        "m:status=500",
        "m:close_immediately",
        "m:usage_shift=90000",
    ),
)
MODELS = (*SHORT, LONG, *FAULTY)
GATEWAY: dict[str, object] = {"idle_timeout_s": 1.0, "first_byte_timeout_s": 5.0, "drain_timeout_s": 0.5}
ANSWER_TIMEOUT_S = 60.0
BUFFER_BYTES = 4096
RESPITE_S = 0.01
LATER = (409, 503)
"""The key's first request is still being served; the platform is stopping."""


class Caller(NamedTuple):
    """Who asks: a key and the headers that go with it."""

    key: str
    headers: Mapping[str, str] = {}


@dataclass(slots=True)
class Plan:
    """One request. name: sent as the client's own id, and as the idempotency key of one that isn't streamed.

    leaves: how the client leaves, after so many pieces of content (not streamed: after so many milliseconds).
    """

    name: str
    caller: Caller
    body: dict[str, Any]
    leaves: Literal["fin", "rst"] | None = None
    leaves_after: int = 0

    @property
    def is_stream(self) -> bool:
        """Whether the answer is streamed; if not, it is asked for under an idempotency key."""
        return bool(self.body["stream"])


class Journal:
    """What clients were told, one JSON line each, out of this process before the next thing happens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self.acks: list[Ack] = []

    def write(self, ack: Ack) -> None:
        """Append one."""
        self._file.write(msgspec.json.encode(ack) + b"\n")
        self.acks.append(ack)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def draw_plan(draw: random.Random, name: str, callers: Sequence[Caller]) -> Plan:
    """Half of them stream; a tenth are faulty, leave, or ask for two choices."""
    is_stream, kind = draw.random() < 0.5, draw.random()
    model = draw.choice(FAULTY if kind < 0.1 else SHORT)
    choices = {"n": 2} if draw.random() < 0.1 else {}
    plan = Plan(name, draw.choice(callers), chat_body(f"fake/{model}", stream=is_stream, **choices))
    if draw.random() < 0.1:
        plan.leaves, plan.leaves_after = draw.choice(["fin", "rst"]), draw.randint(1, 12)
    return plan


@dataclass(slots=True)
class Load:
    """Plays plans against a platform. pending: requests under keys that nobody answered yet, to be sent again.

    answered: requests under keys whose answer is known. Counts what was begun, so that a rig can act in the middle.
    """

    journal: Journal
    draw: random.Random
    callers: Sequence[Caller]
    prefix: str
    base_url: str = ""
    pending: deque[Plan] = field(default_factory=deque)
    answered: list[Plan] = field(default_factory=list)
    begun_count: int = 0
    replayed_count: int = 0
    refused_count: int = 0
    complaints: list[str] = field(default_factory=list)
    _made_count: int = 0

    def next_plan(self) -> Plan:
        """What is pending first, now and then what has been answered, else something new."""
        if self.pending:
            return self.pending.popleft()
        if self.answered and self.draw.random() < 0.05:
            return self.draw.choice(self.answered)
        self._made_count += 1
        return draw_plan(self.draw, f"{self.prefix}-{self._made_count}", self.callers)

    async def keep_asking(self, is_over: Callable[[], bool]) -> None:
        """One client after another until it is over."""
        while not is_over():
            got = await self.play(self.next_plan())
            if got.status in (None, *LATER):
                await asyncio.sleep(RESPITE_S)

    async def keep_streaming(self, is_over: Callable[[], bool]) -> None:
        """One long stream after another until it is over."""
        while not is_over():
            self._made_count += 1
            body = chat_body(f"fake/{LONG}")
            await self.play(Plan(f"{self.prefix}-{self._made_count}", self.draw.choice(self.callers), body))
            await asyncio.sleep(RESPITE_S)

    async def drain(self, tries_max: int = 200) -> None:
        """Ask for everything that is pending until it is answered."""
        for _ in range(tries_max):
            if not self.pending:
                return
            todo = [self.pending.popleft() for _ in range(len(self.pending))]
            await asyncio.gather(*map(self.play, todo))
        self.complaints.append(f"never answered: {[plan.name for plan in self.pending]}")

    async def play(self, plan: Plan) -> Received:
        """Send one request, behave as planned, write down what came."""
        got = Received()
        headers = {**plan.caller.headers, "x-request-id": plan.name}
        if not plan.is_stream:
            headers["idempotency-key"] = plan.name
        try:
            connecting = Client.chat(
                self.base_url, plan.body, api_key=plan.caller.key, headers=headers, receive_bytes_max=BUFFER_BYTES
            )
            async with await connecting as client:
                self.begun_count += 1
                got = client.received
                await self._read(client, plan)
        except OSError:
            pass  # nobody listens, or hung up before the request was out: it was told nothing
        self._note(plan, got)
        self.begun_count -= got.status in LATER
        return got

    async def _read(self, client: Client, plan: Plan) -> None:
        if plan.leaves is None:
            await client.read_to_end(timeout_s=ANSWER_TIMEOUT_S)
            return
        if plan.is_stream:
            await client.read_tokens(plan.leaves_after, timeout_s=ANSWER_TIMEOUT_S)
        else:
            await asyncio.sleep(plan.leaves_after / 1000)
        client.leave(plan.leaves)

    def _note(self, plan: Plan, got: Received) -> None:
        if got.status is not None:
            self.journal.write(acknowledgement(plan, got))
        is_complete = got.status == 200 and is_whole(got)
        self.replayed_count += got.headers.get("idempotent-replayed") == "true"
        self.refused_count += got.status == 429
        if plan.is_stream:
            return
        if is_complete:
            if plan not in self.answered[-500:]:
                self.answered.append(plan)
        elif got.ended != "complete" or got.status == 409:
            plan.leaves = None  # whoever asks again wants to know
            self.pending.append(plan)


def is_whole(got: Received) -> bool:
    """Whether the end of a good answer was seen: a finish reason, the usage or `[DONE]`."""
    return got.finish_reason is not None or got.is_done_seen or got.usage is not None


def acknowledgement(plan: Plan, got: Received) -> Ack:
    """What the auditor checks of an answer."""
    assert got.status is not None
    return Ack(
        request_id=got.headers["x-request-id"],
        status=got.status,
        is_complete=got.status == 200 and is_whole(got),
        output_tokens=None if got.usage is None else got.usage["completion_tokens"],
        delivered_ns=got.content_arrivals_ns if got.is_stream else [],
        idempotency_key=None if plan.is_stream else plan.name,
        original_request_id=got.headers.get("x-headwater-original-request-id"),
        body_sha256=None if plan.is_stream else hashlib.sha256(got.body).hexdigest(),
    )
