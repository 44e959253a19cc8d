"""Keys through the command line while the platform runs and while it doesn't, and the same usage wherever it is read."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.auditor import audit
from tests.rig.ledger_rows import Ledger
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
FAST, CACHED, BROKEN = "m:tokens=5", "m:tokens=9,reasoning=2,cached=4", "m:tokens=9,cut_after=3"
UNPRICED = "m:tokens=7"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    prices = [
        {"model": f"fake/{model}", "input": "0.123456789", "cached_input": "0.011", "output": "7.1", "reasoning": "9"}
        for model in (FAST, CACHED, BROKEN)
    ]
    text = config(upstreams=[upstream("fake", engine.base_url, [FAST, CACHED, BROKEN, UNPRICED])], prices=prices)
    async with running_platform(text, module_path / "p") as running:
        yield running


async def code_of(platform: Platform, key: str) -> str | None:
    """What a request with that key is refused with, or None."""
    got = await platform.ask(chat_body(f"fake/{FAST}"), api_key=key)
    assert (got.status == 401) == (got.error is not None)
    return None if got.error is None else str(got.error["code"])


async def listed(platform: Platform, key_id: str) -> dict[str, Any]:
    """The key as `keys list` shows it."""
    (found,) = [key for key in (await platform.cli("keys", "list", "--json")).json() if key["id"] == key_id]
    return dict(found)


async def test_a_key_made_while_it_runs_works_at_once_and_a_revoked_one_stops_at_once(platform: Platform) -> None:
    made = await platform.create_key("--name", "alice")
    assert re.fullmatch(r"hw-[0-9A-Za-z]{49}", made["key"])
    assert await code_of(platform, made["key"]) is None  # from here on it is held in memory
    assert await code_of(platform, made["key"]) is None
    shown = await listed(platform, made["id"])
    assert (shown["name"], shown["state"], shown["hint"][:8]) == ("alice", "active", made["key"][:8])
    revoked = (await platform.cli("keys", "revoke", made["id"], "--json")).json()
    assert revoked["state"] == "revoked"
    assert await code_of(platform, made["key"]) == "revoked_api_key"
    assert (await listed(platform, made["id"]))["state"] == "revoked"
    again = (await platform.cli("keys", "revoke", made["id"], "--json")).json()
    assert again["revoked_at"] == revoked["revoked_at"], "revoking twice keeps the first time"


async def test_a_key_in_steady_use_opens_nothing_once_its_revocation_has_returned(platform: Platform) -> None:
    made = await platform.create_key()
    sent_s: list[tuple[float, str | None]] = []
    is_over = asyncio.Event()

    async def use() -> None:
        while not is_over.is_set():
            asked_s = time.monotonic()
            sent_s.append((asked_s, await code_of(platform, made["key"])))

    users = [asyncio.create_task(use()) for _ in range(8)]
    await platform.cli("keys", "revoke", made["id"])
    revoked_s = time.monotonic()
    await asyncio.gather(*(use_once(platform, made["key"], sent_s) for _ in range(20)))
    is_over.set()
    await asyncio.gather(*users)
    late = [code for asked_s, code in sent_s if asked_s >= revoked_s]
    assert len(late) >= 20
    assert set(late) == {"revoked_api_key"}
    assert any(code is None for asked_s, code in sent_s if asked_s < revoked_s)


async def use_once(platform: Platform, key: str, sent_s: list[tuple[float, str | None]]) -> None:
    asked_s = time.monotonic()
    sent_s.append((asked_s, await code_of(platform, key)))


async def test_an_expired_key_opens_nothing_even_when_it_is_held_in_memory(platform: Platform) -> None:
    made = await platform.create_key("--expires", "2s")
    assert await code_of(platform, made["key"]) is None
    async with asyncio.timeout(5.0):
        while (code := await code_of(platform, made["key"])) is None:
            assert time.time() < datetime.fromisoformat(made["expires_at"]).timestamp() + 1.5
    assert code == "expired_api_key"
    assert (await listed(platform, made["id"]))["state"] == "expired"


async def test_the_secret_is_shown_once(platform: Platform) -> None:
    ran = await platform.cli("keys", "create", "--name", "bob")
    secret = ran.stdout.strip()
    assert await code_of(platform, secret) is None
    for arguments in (("list",), ("list", "--json")):
        shown = (await platform.cli("keys", *arguments)).stdout
        assert "bob" in shown
        assert secret not in shown
        assert secret[10:] not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("keys", "revoke", "key_nothing"), "key_nothing"),
        (("keys", "create", "--model", "gpt-4"), "gpt-4"),
        (("keys", "create", "--expires", "tomorrow"), "tomorrow"),
        (("keys", "create", "--expires", "0s"), "0"),
        (("keys", "create", "--name", ""), "name"),
        (("usage", "--start", "yesterday"), "yesterday"),
        (("usage", "--start", "2026-02-01", "--end", "2026-01-01"), "before"),
    ],
)
async def test_an_impossible_wish_fails_in_words(platform: Platform, arguments: tuple[str, ...], words: str) -> None:
    before = (await platform.cli("keys", "list", "--json")).json()
    ran = await platform.cli(*arguments, check=False)
    assert ran.status == 1
    assert ran.stdout == ""
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert (await platform.cli("keys", "list", "--json")).json() == before


async def test_keys_are_made_and_revoked_while_it_does_not_run(short_path: Path) -> None:
    async with (
        fake_engine() as engine,
        running_platform(config(upstreams=[upstream("fake", engine.base_url, [FAST])]), short_path / "p") as platform,
    ):
        assert await platform.stop() == 0
        kept, dropped = await asyncio.gather(platform.create_key(), platform.create_key())  # two at once
        await platform.cli("keys", "revoke", dropped["id"])
        states = {key["id"]: key["state"] for key in (await platform.cli("keys", "list", "--json")).json()}
        assert states == {platform.key_id: "active", kept["id"]: "active", dropped["id"]: "revoked"}
        await platform.start()
        assert await code_of(platform, kept["key"]) is None
        assert await code_of(platform, dropped["key"]) == "revoked_api_key"


async def test_usage_is_the_same_wherever_it_is_read(engine: FakeEngineHandle, platform: Platform) -> None:
    other = await platform.create_key("--name", "other")
    bodies = [
        chat_body(f"fake/{model}", stream=stream, **choices)
        for model in (FAST, CACHED, BROKEN, UNPRICED)
        for stream in (True, False)
        for choices in ({}, {"n": 2})
    ]
    await asyncio.gather(*map(platform.ask, bodies))
    await asyncio.gather(*(platform.ask(body, api_key=other["key"]) for body in bodies[:5]))
    await platform.idle()
    found = audit(platform.database, await engine.settled(1))
    assert found.is_clean, str(found)
    records = Ledger.read(platform.database).records

    for by, column in (("model", "model"), ("key", "key_id"), ("day", "received_at_ms")):
        rows = (await platform.cli("usage", "--by", by, "--json")).json()
        groups: dict[str, list[Any]] = {}
        for record in records:
            name = _day(record[column]) if by == "day" else record[column]
            groups.setdefault(name, []).append(record)
        shown_groups = {row[by].rpartition("(")[2].rstrip(")"): row for row in rows}  # a key is `name (id)`
        assert shown_groups.keys() == groups.keys()
        assert len(shown_groups) == len(rows)
        for name, row in shown_groups.items():
            assert _sums_shown(row) == _sums(groups[name])

    for key, key_id in ((platform.key, platform.key_id), (other["key"], other["id"])):
        own = [record for record in records if record["key_id"] == key_id]
        shown = (await platform.get("/v1/usage", headers={"authorization": f"Bearer {key}"})).json()
        assert shown["key_id"] == key_id
        assert shown["requests_count"] == len(own)
        assert _nanos(shown["cost"]) == _sums(own)["cost_nanos"]
        by_model = {row["model"]: row for row in shown["data"]}
        assert by_model.keys() == {record["model"] for record in own}
        for model, row in by_model.items():
            mine = _sums([record for record in own if record["model"] == model])
            assert _nanos(row["cost"]) == mine["cost_nanos"]
            assert row["requests_count"] == mine["requests_count"]
            assert (row["input_tokens"], row["output_tokens"]) == (mine["input_tokens"], mine["output_tokens"])
            assert row["cached_input_tokens"] == mine["cached_input_tokens"]
            assert row["unpriced_requests_count"] == mine["unpriced_count"]
    table = (await platform.cli("usage", "--by", "model")).stdout
    assert f"fake/{FAST}" in table
    assert await _past_is_empty(platform)


async def _past_is_empty(platform: Platform) -> bool:
    got = (await platform.get("/v1/usage?start=2020-01-01&end=2021-01-01")).json()
    rows = (await platform.cli("usage", "--start", "2020-01-01", "--end", "2021-01-01", "--json")).json()
    return (got["requests_count"], got["cost"], got["data"], rows) == (0, "0", [], [])


@pytest.mark.parametrize(
    "query", ["start=yesterday", "end=2026-13-01", "since=2026-01-01", "start=2026-02-01&end=2026-01-01"]
)
async def test_a_bad_span_is_refused(platform: Platform, query: str) -> None:
    got = await platform.get(f"/v1/usage?{query}")
    assert (got.status, got.json()["error"]["type"]) == (400, "invalid_request_error")
    assert got.json()["error"]["param"] in ("start", "end", "since")


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d")


def _nanos(units: str) -> int:
    whole, _, fraction = units.partition(".")
    return int(whole) * 10**9 + int(fraction.ljust(9, "0"))


def _sums(records: list[Any]) -> dict[str, int]:
    return {
        "requests_count": len(records),
        "ok_count": sum(record["outcome"] == "ok" for record in records),
        "input_tokens": sum(
            record["uncached_input"] + record["cache_read"] + record["cache_write"] for record in records
        ),
        "cached_input_tokens": sum(record["cache_read"] for record in records),
        "output_tokens": sum(record["output"] for record in records),
        "cost_nanos": sum(record["cost_nanos"] or 0 for record in records),
        "unpriced_count": sum(record["cost_nanos"] is None for record in records),
    }


def _sums_shown(row: dict[str, Any]) -> dict[str, int]:
    assert _nanos(row["cost"]) == row["cost_nanos"]
    return {name: row[name] for name in _sums([])}
