"""Payloads and targets for tests of the gateway."""

from typing import Any

from headwater.gateway.engines import Engine
from headwater.gateway.pool import Member, Pool
from headwater.gateway.routing import Target, Timeouts
from headwater.request import Chat, Message

HI = Message(role="user", content="hi")


def chat(**changes: Any) -> Chat:
    return Chat(**{"messages": (HI,), **changes})


class CountingEngine:
    """An engine that can be asked one thing, and notes that it was."""

    replica_id = "rep_1"

    def __init__(self, counted: int | None) -> None:
        self.counted = counted
        self.asked_count = 0

    async def open(self, chat: Chat, **_: Any) -> Any:
        raise AssertionError("no call is made here")

    async def count_input_tokens(self, chat: Chat) -> int | None:
        self.asked_count += 1
        return self.counted

    async def close(self) -> None:
        pass


def target(
    name: str = "m", engine: Engine | None = None, *, context_tokens: int | None = 4096, is_own: bool = True
) -> Target:
    """A target with one ready replica; needs a running loop."""
    pool = Pool[Engine](name, queued_max=10)
    pool.add_member(Member[Engine]("rep_1", engine or CountingEngine(1), 1, is_slotted=is_own))
    return Target(name, name, pool, Timeouts(1, 1, 1), context_tokens, is_own, 0)
