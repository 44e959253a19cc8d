"""Looks at one running replica again and again, asks it when it is silent, and reports what `liveness.judge` finds."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from headwater.controller import liveness, probe
from headwater.controller.lifecycle import Answered, Event, Hung, Silent
from headwater.controller.liveness import Bounds, Look, Pulse, Verdict, describe, is_question_due
from headwater.replica import Progress


async def watch(
    bounds: Bounds,
    *,
    socket_path: Path,
    api_key: str,
    progress: Callable[[], Progress | None],
    send: Callable[[Event], None],
) -> None:
    """Send Silent and Answered as they come, and Hung once, which ends it; else it goes on until it is cancelled.

    progress: what the gateway sees of its calls, None while it knows none.
    """
    now_s = asyncio.get_running_loop().time
    pulse = Pulse(now_s(), now_s())
    asked_s, mark = pulse.sign_s, None
    question: asyncio.Task[probe.Asked] | None = None
    is_suspect = False
    try:
        while True:
            await asyncio.sleep(bounds.tick_s)
            answer = None
            if question is not None and question.done():
                answer, mark = question.result()
                question = None
            seen = progress()
            in_flight_count = 0 if seen is None else seen.in_flight_count
            advanced_at_s = 0.0 if seen is None else seen.advanced_at_s
            pulse, verdict = liveness.judge(pulse, Look(now_s(), in_flight_count, advanced_at_s, answer), bounds)
            if verdict is Verdict.HUNG:
                send(Hung(describe(pulse, in_flight_count)))
                return
            if verdict is Verdict.SUSPECT and not is_suspect:
                is_suspect = True
                send(Silent(describe(pulse, in_flight_count)))
            elif verdict is Verdict.ALIVE and is_suspect:
                is_suspect = False
                send(Answered())
            if question is None and is_question_due(pulse, asked_s, bounds):
                if advanced_at_s > asked_s:
                    mark = None  # how far the work was then says nothing of now
                asked_s = now_s()
                question = asyncio.ensure_future(
                    probe.ask(socket_path, api_key, timeout_s=bounds.ask_interval_s, mark=mark)
                )
    finally:
        if question is not None:
            question.cancel()
