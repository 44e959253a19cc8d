import asyncio
from typing import Any

import pytest

from headwater.errors import BodyTooLarge, Overloaded, TimedOut
from headwater.gateway.body import SMALL_BODY_BYTES, ClientLeft, LargeBodies, Receive, read_body
from headwater.gateway.headers import Headers
from tests.unit.gateway.fake_time import run


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


LEFT = {"type": "http.disconnect"}


def receiving(*messages: dict[str, Any], gap_s: float = 0.0) -> Receive:
    """A `receive` that gives these messages, each after a gap, then nothing any more."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(gap_s if left else 10_000)
        return left.pop(0)

    return receive


def read(receive: Receive, *, length: int | None = None, bytes_max: int = 10, timeout_s: float = 60) -> bytes:
    return run(read_body(receive, Headers(content_length=length), bytes_max=bytes_max, timeout_s=timeout_s))


@pytest.mark.parametrize(
    "messages",
    [
        [part(b"0123456789")],
        [part(b"01234", more=True), part(b"56789")],
        [part(b"", more=True), part(b"0123456789", more=True), part(b"")],
        [{"type": "http.request", "more_body": True}, part(b"0123456789")],
    ],
)
def test_a_body_up_to_the_cap_arrives_whole(messages: list[dict[str, Any]]) -> None:
    assert read(receiving(*messages), length=10) == b"0123456789"


def test_a_body_declared_too_large_is_refused_unread() -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("it was read")

    with pytest.raises(BodyTooLarge, match=r"11 bytes or more; at most 10"):
        read(receive, length=11)


@pytest.mark.parametrize(
    "messages",
    [
        [part(b"x" * 11)],
        [part(b"x" * 6, more=True), part(b"x" * 5, more=True)],
        [part(b"x" * 10, more=True), part(b"x")],
    ],
)
@pytest.mark.parametrize("length", [None, 5])
def test_a_body_that_turns_out_too_large_is_refused_as_soon_as_it_is(
    messages: list[dict[str, Any]], length: int | None
) -> None:
    with pytest.raises(BodyTooLarge):
        read(receiving(*messages), length=length)


@pytest.mark.parametrize("messages", [[LEFT], [part(b"abc", more=True), LEFT]])
def test_a_client_that_leaves_before_its_request_is_complete(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(ClientLeft):
        read(receiving(*messages))


@pytest.mark.parametrize("messages", [[], [part(b"abc", more=True)]])
def test_a_body_that_does_not_come_times_out(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(TimedOut, match="60 s"):
        read(receiving(*messages))


def test_a_body_that_drips_has_one_time_out_in_all() -> None:
    with pytest.raises(TimedOut):
        read(receiving(*[part(b"x", more=True)] * 9, gap_s=10), timeout_s=60)
    assert read(receiving(*[part(b"x", more=True)] * 3, part(b"x"), gap_s=10), timeout_s=60) == b"xxxx"


async def test_only_so_many_large_bodies_are_read_at_once_and_small_ones_always() -> None:
    large, never = LargeBodies(1), asyncio.Event()

    async def waiting() -> dict[str, Any]:
        await never.wait()
        return LEFT

    async def reading(receive: Receive, length: int | None) -> bytes:
        return await read_body(receive, Headers(content_length=length), bytes_max=10**6, timeout_s=60, large=large)

    first = asyncio.ensure_future(reading(waiting, None))
    await asyncio.sleep(0)
    assert large.count == 1
    with pytest.raises(Overloaded):
        await reading(receiving(part(b"x")), SMALL_BODY_BYTES + 1)
    assert await reading(receiving(part(b"x")), 1) == b"x"
    first.cancel()
    await asyncio.wait([first])
    assert await reading(receiving(part(b"x")), None) == b"x"
    assert large.count == 0


def test_a_body_that_is_here_is_bounded_too_but_sets_no_timer() -> None:
    async def here() -> dict[str, Any]:
        return part(b"x" * 11)

    with pytest.raises(BodyTooLarge, match="11 bytes or more"):
        run(read_body(here, Headers(content_length=None), bytes_max=10, timeout_s=60, is_here=True))
