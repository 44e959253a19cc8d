"""A settlement that comes after its hold has expired is posted if the caps still allow it, else absorbed; never dropped."""

import asyncio
from pathlib import Path
from typing import Any

from tests.integration.bodies import chat_body
from tests.rig import twins
from tests.rig.admin import administer
from tests.rig.auditor import Ack, audit
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import fake_engine

SLOW, FAST = "m:exact,gap_ms=100", "m:exact,gap_ms=1"
TOKENS, NANOS_PER_TOKEN = 20, 1000
COST = TOKENS * NANOS_PER_TOKEN
PRICES = [{"model": f"fake/{model}", "input": "0", "output": "1"} for model in (SLOW, FAST)]
"""Only output costs, and as much of it is made as may be: a request costs what is held for it."""


async def limited_key(platform: Platform, name: str, limit_nanos: int, *, is_prepaid: bool) -> str:
    """A key whose organization has room for so much, in credit or under a cap."""
    limit = f"0.{limit_nanos:09d}"
    await administer(platform, "organizations.create", name=name, is_prepaid=is_prepaid)
    if is_prepaid:
        await administer(platform, "grants.create", organization=name, amount=limit)
    else:
        await administer(platform, "budgets.create", organization=name, limit=limit, period="total")
    made = await administer(platform, "keys.create", name=name, organization=name)
    return str(made["key"])


async def expired_then_settled(platform: Platform, *, is_prepaid: bool, is_room_taken: bool) -> dict[str, Any]:
    """The record of a request whose hold expires while it runs; somebody else may take the room meanwhile."""
    name = f"{is_prepaid}-{is_room_taken}"
    key = await limited_key(platform, name, COST * 3 // 2, is_prepaid=is_prepaid)
    expired = (
        "SELECT 1 FROM resolutions s JOIN reservations r ON r.id = s.reservation_id"
        " WHERE r.client_request_id = ? AND s.kind = 'expire'"
    )
    body = chat_body(f"fake/{SLOW}", max_tokens=TOKENS)
    slow = asyncio.create_task(platform.ask(body, api_key=key, request_id=name))
    await until(lambda: platform.rows(expired, name))
    if is_room_taken:
        other = await platform.ask(chat_body(f"fake/{FAST}", max_tokens=TOKENS), api_key=key)
        assert other.status == 200
    got = await slow
    assert got.is_done_seen
    return await platform.record(got.headers["x-request-id"])


async def test_a_late_settlement_is_posted_or_absorbed_never_dropped(short_path: Path) -> None:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [SLOW, FAST])], prices=PRICES)
        wrapper = twins.wrapper("impatient_holds")
        async with running_platform(text, short_path / "p", wrapper=wrapper, env=twins.ENVIRONMENT) as platform:
            found = await asyncio.gather(
                *(
                    expired_then_settled(platform, is_prepaid=is_prepaid, is_room_taken=is_room_taken)
                    for is_prepaid in (False, True)
                    for is_room_taken in (False, True)
                )
            )
            assert [(record["flags"], record["cost_nanos"]) for record in found] == [
                ("late", COST),
                ("late absorbed", 0),
                ("late", COST),
                ("late absorbed", 0),
            ]
            acks = [
                Ack(request_id=one["request_id"], status=200, is_complete=True, output_tokens=TOKENS) for one in found
            ]
            assert await platform.stop() == 0
            audited = audit(platform.database, await engine.settled(6), acks=acks)
            assert audited.is_clean, str(audited)
