import asyncio

import pytest

from headwater.errors import PlatformError, TimedOut
from headwater.gateway.stop import LiveRequests, Stop, Stopped
from tests.unit.gateway.fake_time import run


class Request:
    """A task that waits under a stop button, and how that ended."""

    def __init__(self) -> None:
        self.stop = Stop()
        self.is_waiting = asyncio.Event()
        self.go_on = asyncio.Event()
        self.after: list[str] = []
        self.task = asyncio.ensure_future(self._serve())

    async def _serve(self) -> str:
        try:
            with self.stop:
                self.is_waiting.set()
                await self.go_on.wait()
        except Stopped as stopped:
            # what comes after may wait again: the cancellation is over
            await asyncio.sleep(0)
            self.after.append("waited")
            return f"{stopped.outcome} {stopped.error}"
        await asyncio.sleep(0)
        return "ok"


async def waiting_request() -> Request:
    request = Request()
    await request.is_waiting.wait()
    return request


def test_a_pressed_button_ends_the_wait_with_its_reason() -> None:
    async def work() -> None:
        request = await waiting_request()
        request.stop.press("timeout", TimedOut("too long"))
        assert await request.task == "timeout too long"
        assert request.after == ["waited"]
        assert request.task.cancelling() == 0

    run(work())


def test_the_first_reason_wins() -> None:
    async def work() -> None:
        request = await waiting_request()
        request.stop.press("client_gone", None)
        request.stop.press("timeout", TimedOut("too long"))
        assert await request.task == "client_gone None"

    run(work())


def test_a_button_pressed_after_the_outcome_is_fixed_does_nothing() -> None:
    async def work() -> None:
        request = await waiting_request()
        request.stop.disarm()
        request.stop.press("client_gone", None)
        request.go_on.set()
        assert await request.task == "ok"

    run(work())


def test_a_button_pressed_before_or_after_the_wait_does_nothing() -> None:
    async def work() -> None:
        stop = Stop()
        stop.press("client_gone", None)
        with stop:
            await asyncio.sleep(0)
        stop.press("client_gone", None)
        await asyncio.sleep(0)

    run(work())


def test_a_cancellation_by_others_passes_through() -> None:
    async def work() -> None:
        request = await waiting_request()
        request.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request.task
        assert request.after == []

    run(work())


@pytest.mark.parametrize("is_pressed_first", [True, False])
def test_a_cancellation_by_others_passes_through_a_pressed_button_too(is_pressed_first: bool) -> None:
    async def work() -> None:
        request = await waiting_request()
        if is_pressed_first:
            request.stop.press("client_gone", None)
        request.task.cancel()
        request.stop.press("client_gone", None)
        with pytest.raises(asyncio.CancelledError):
            await request.task

    run(work())


def test_an_error_that_came_first_is_not_covered_up() -> None:
    async def work() -> None:
        is_waiting = asyncio.Event()
        stop = Stop()

        async def serve() -> None:
            with stop:
                is_waiting.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    raise TimedOut("while cleaning up")

        task = asyncio.ensure_future(serve())
        await is_waiting.wait()
        stop.press("client_gone", None)
        with pytest.raises(TimedOut):
            await task
        assert task.cancelling() == 0

    run(work())


def test_a_button_ends_every_task_of_a_group_below_it() -> None:
    async def work() -> None:
        ended: list[int] = []
        stop = Stop()
        running = asyncio.Barrier(9)

        async def child(number: int) -> None:
            try:
                await running.wait()
                await asyncio.Event().wait()
            finally:
                ended.append(number)

        async def serve() -> str:
            try:
                with stop:
                    async with asyncio.TaskGroup() as group:
                        for number in range(8):
                            group.create_task(child(number))
            except Stopped as stopped:
                await asyncio.sleep(0)
                return stopped.outcome
            return "ok"

        task = asyncio.ensure_future(serve())
        await running.wait()
        stop.press("client_gone", None)
        assert await task == "client_gone"
        assert sorted(ended) == list(range(8))

    run(work())


def test_all_live_requests_are_stopped_and_waited_for() -> None:
    async def work() -> None:
        live = LiveRequests()
        await live.empty()  # none: at once
        requests = [await waiting_request() for _ in range(5)]
        for request in requests:
            live.add(request.stop)
            request.task.add_done_callback(lambda _, stop=request.stop: live.discard(stop))  # type: ignore[misc]
        assert len(live) == 5
        live.stop_all("upstream_error", PlatformError("the end"))
        await live.empty()
        assert len(live) == 0
        assert [request.task.result() for request in requests] == ["upstream_error the end"] * 5

    run(work())
