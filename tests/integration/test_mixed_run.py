"""A thousand requests of every kind, some of whose clients leave and some of whose engines fail: the books are exact."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.integration.bodies import LOOKUP_TOOL, MESSAGES, chat_body
from tests.rig.auditor import Ack, audit
from tests.rig.clients import Client, Received
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import fake_engine
from tests.rig.tail import TruthTail, marked

REQUESTS_COUNT, CONCURRENCY = 1000, 50
PLAIN = ["m:gap_ms=2", "m:reasoning=3,cached=4,gap_ms=1", "m:tool_call=2", "m:tokens=30,gap_ms=3", "m:batch=3"]
LONG, SLOW_START = "m:tokens=120,gap_ms=10", "m:prefill_ms=3000"
FAULTY = [
    "m:tokens=9,cut_after=4",
    "m:tokens=9,cut_after=0,cut_mode=fin",
    "m:tokens=9,error_in_200_after=2",
    "m:tokens=9,stall_after=5",
    "m:tokens=9,bad_json_after=2",
    "m:tokens=9,no_finish",
    "m:tokens=9,no_usage",
    "m:tokens=9,usage_negative",
    "m:tokens=9,no_done",
    "m:silent",
    "m:garbage",
    "m:close_immediately",
    "m:status=500",
    "m:status=429,retry_after=3",
]
Leaving = Literal["fin", "rst", "stall"]


@dataclass(frozen=True)
class Plan:
    """One request: what is asked, and after how many tokens the client leaves (None: it stays)."""

    name: str
    body: dict[str, Any]
    leaves: Leaving | None = None
    after_tokens: int = 0


def plans(seed: int) -> list[Plan]:
    """About a tenth leave, about a tenth are faulty, about a tenth ask for three choices; half of them stream."""
    draw = random.Random(seed)
    made = []
    for number in range(REQUESTS_COUNT):
        stream, kind, name = draw.random() < 0.5, draw.random(), f"mixed-{number}"
        choices = {"n": 3} if draw.random() < 0.1 else {}
        if kind < 0.1:
            leaves: Leaving = draw.choice(["fin", "rst", "stall"])
            # Whoever doesn't stream leaves during prefill: otherwise the answer may be out before they go.
            messages = {"messages": MESSAGES if stream else marked(number)}
            body = chat_body(f"fake/{LONG if stream else SLOW_START}", stream=stream, **messages, **choices)
            made.append(Plan(name, body, leaves, draw.randint(1, 40) if stream else 0))
        elif kind < 0.2:
            made.append(Plan(name, chat_body(f"fake/{draw.choice(FAULTY)}", stream=stream, **choices)))
        else:
            tools = {"tools": [LOOKUP_TOOL]} if draw.random() < 0.3 else {}
            made.append(Plan(name, chat_body(f"fake/{draw.choice(PLAIN)}", stream=stream, **tools, **choices)))
    return made


async def play(platform: Platform, tail: TruthTail, plan: Plan) -> Received:
    """Send the request and behave as planned."""
    async with await Client.chat(
        platform.base_url, plan.body, api_key=platform.key, request_id=plan.name, receive_bytes_max=4096
    ) as client:
        if plan.leaves is None:
            return await client.read_to_end()
        if plan.after_tokens:
            await client.read_tokens(plan.after_tokens)
        else:
            await tail.wait_begun(plan.body["messages"])
        if plan.leaves == "stall":
            await asyncio.sleep(0.2)  # it has stopped reading; then the connection is closed with bytes unread
        else:
            client.leave(plan.leaves)
        return client.received


async def test_a_thousand_mixed_requests_leave_exactly_a_thousand_right_records(short_path: Path) -> None:
    async with fake_engine() as engine:
        models = [*PLAIN, LONG, SLOW_START, *FAULTY]
        text = config(
            upstreams=[upstream("fake", engine.base_url, models, failures_max=0, retries_max=0)],
            gateway={"idle_timeout_s": 1.0, "first_byte_timeout_s": 5.0},
        )
        async with running_platform(text, short_path / "p") as platform:
            places, tail = asyncio.Semaphore(CONCURRENCY), TruthTail(engine.truth_path)

            async def one(plan: Plan) -> Received:
                async with places:
                    return await play(platform, tail, plan)

            todo = plans(seed=20261123)
            started_s = time.monotonic()
            answers = await asyncio.gather(*map(one, todo))
            took_s = time.monotonic() - started_s
            await platform.idle()
            metrics = await platform.metrics()
            assert await platform.stop() == 0

            acks = [_ack(got) for got in answers if got.status is not None]
            found = audit(platform.database, engine.truth(), acks=acks)
            records = platform.records()
            branches = sum(plan.body.get("n", 1) for plan in todo)
            stayed = [record for record in records if record["outcome"] != "client_gone"]
            print(f"{REQUESTS_COUNT} requests, {branches} branches in {took_s:.1f} s")
            print(f"planned to leave: {sum(plan.leaves is not None for plan in todo)}; stayed: {len(stayed)}")
            print(f"commits {metrics['headwater_ledger_commits_total']:.0f}, settlements", end=" ")
            print(f"{metrics['headwater_ledger_settlements_total']:.0f}")
            print(found)
            names = Counter(record["client_request_id"] for record in records)
            assert names == Counter(plan.name for plan in todo), "one record for each request, no more, no less"
            assert found.is_clean, str(found)
            by_name = {record["client_request_id"]: record for record in records}
            _check_answers(todo, answers, by_name)


def _ack(got: Received) -> Ack:
    is_complete = got.is_done_seen or (got.status == 200 and not got.is_stream and got.ended == "complete")
    tokens = None if got.usage is None else got.usage["completion_tokens"]
    return Ack(
        request_id=got.headers["x-request-id"], status=got.status or 0, is_complete=is_complete, output_tokens=tokens
    )


def _check_answers(todo: list[Plan], answers: list[Received], by_name: dict[str, dict[str, Any]]) -> None:
    """A client that stayed was told an end that fits its record: complete, or a typed error."""
    for plan, got in zip(todo, answers, strict=True):
        record = by_name[plan.name]
        if plan.leaves is not None:
            assert record["outcome"] == "client_gone", (plan, record)
        elif record["outcome"] == "ok":
            assert got.status == 200, (plan, got.status)
            assert got.error is None, plan
            assert got.usage is not None, plan
            assert got.is_done_seen or not got.is_stream, plan
        else:
            assert got.ended == "complete", plan
            assert got.error is not None, plan
            assert got.error["code"] == record["error_code"], plan
            assert not got.is_done_seen, plan
