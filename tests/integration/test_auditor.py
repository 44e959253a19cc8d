"""The auditor passes books that are right and catches each way of being wrong: the twins of the promises it checks."""

import asyncio
import contextlib
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.admin import administer
from tests.rig.auditor import METRICS, Ack, audit, main
from tests.rig.clients import Client, Received
from tests.rig.platform import Platform, config, running_platform, until, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.rig.truth import Truth

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODELS = ["m:tokens=7,reasoning=3,cached=2", "m:tokens=7,cut_after=3", "m:tokens=5,no_usage"]
LONG, DEAR, SLOW = "m:tokens=5000,gap_ms=1", "m:tokens=2,usage_shift=100000", "m:prefill_ms=60000"
OK_RECORD = "(SELECT min(request_id) FROM usage_records WHERE outcome = 'ok' AND choices_count = 1)"
OK_ATTEMPT = f"(SELECT id FROM attempts WHERE request_id = {OK_RECORD})"
OK_HOLD = f"(SELECT id FROM reservations WHERE request_id = {OK_RECORD})"
RECOVERED = "(SELECT request_id FROM usage_records WHERE flags = 'recovered' AND output > 0)"
COSTS = f'[[costs]]\nmodel = "fake/{MODELS[0]}"\ninput = "0.05"\noutput = "0.07"\nrequest = "100"\n'


@dataclass(frozen=True)
class Books:
    database: Path
    truth_path: Path
    acks: list[Ack]
    killed_at_ns: int


def told(got: Received, *, key: str | None = None) -> Ack:
    """What an answer told its client."""
    return Ack(
        request_id=got.headers["x-request-id"],
        status=got.status or 0,
        is_complete=got.finish_reason is not None,
        output_tokens=None if got.usage is None else got.usage["completion_tokens"],
        delivered_ns=got.content_arrivals_ns if got.is_stream else [],
        idempotency_key=key,
        original_request_id=got.headers.get("x-headwater-original-request-id"),
        body_sha256=hashlib.sha256(got.body).hexdigest(),
    )


async def prepaid_key(platform: Platform) -> str:
    """A key of an organization that pays beforehand, under a budget of every scope."""
    await administer(platform, "organizations.create", name="acme", is_prepaid=True)
    project = await administer(platform, "projects.create", name="search", organization="acme")
    key = await administer(platform, "keys.create", name="acme key", project=project["id"], organization="acme")
    await administer(platform, "grants.create", organization="acme", amount="5")
    for scope in ({}, {"project": project["id"]}, {"key": key["details"]["id"]}, {"tag": "night"}):
        period = "custom" if scope else "week"
        days = {"period_days": 3} if scope else {}
        await administer(
            platform,
            "budgets.create",
            organization="acme",
            limit="4",
            period=period,
            **days,
            **scope,
            time_zone="Asia/Shanghai",
        )
    return str(key["key"])


async def crash(platform: Platform, engine: FakeEngineHandle, key: str) -> tuple[int, Ack]:
    """Kill it in the middle of a stream and of an answer that isn't streamed, and start it again.

    Both are held from credit that expires before the kill.
    """
    soon_ms = int(time.time() * 1000) + 700
    await administer(platform, "grants.create", organization="acme", amount="0.01", expires_at_ms=soon_ms)
    whole, stream = chat_body(f"fake/{SLOW}", stream=False), chat_body(f"fake/{LONG}")
    async with (
        await Client.chat(platform.base_url, whole, api_key=key),
        await Client.chat(platform.base_url, stream, api_key=key) as streaming,
    ):
        await streaming.read_tokens(600)
        await until(lambda: time.time() * 1000 > soon_ms and platform.rows("SELECT 1 FROM marks"))
        killed_at_ns = time.monotonic_ns()
        await platform.kill()
        got = await streaming.read_to_end()
    await platform.start()
    return killed_at_ns, told(got)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def books(module_path: Path) -> AsyncIterator[Books]:
    """The books of a few requests of every kind, one crash among them, closed."""
    truth_path = module_path / "truth.jsonl"
    async with fake_engine(truth_path=truth_path) as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [*MODELS, LONG, DEAR, SLOW])]) + COSTS
        async with running_platform(text, module_path / "p") as platform:
            bodies = [chat_body(f"fake/{model}", stream=stream) for model in MODELS for stream in (True, False)]
            bodies += [chat_body(f"fake/{MODELS[0]}", n=3), chat_body("fake/unknown")]
            acks = [told(got) for got in await asyncio.gather(*map(platform.ask, bodies))]
            key = await prepaid_key(platform)
            await asyncio.sleep(1.1)  # the auditor allows a budget a second to come into force
            paid = [
                chat_body(f"fake/{model}", stream=stream) for model in (MODELS[0], DEAR) for stream in (True, False)
            ]
            night = {"x-headwater-tags": "night"}
            acks += [told(await platform.ask(body, api_key=key, headers=night)) for body in paid]
            acks.append(told(await platform.ask(paid[0] | {"max_tokens": 10_000_000}, api_key=key)))
            once = {"idempotency-key": "key-1", "x-request-id": "key-1"}
            for _ in range(2):
                got = await platform.ask(paid[1], api_key=key, headers=once)
                acks.append(told(got, key="key-1"))
            assert got.headers["idempotent-replayed"] == "true"
            killed_at_ns, ack = await crash(platform, engine, key)
            await until(lambda: platform.rows("SELECT 1 FROM transfers WHERE kind = 'grant_expire' AND part = 0"))
            await engine.settled(16)
            assert await platform.stop() == 0
            yield Books(platform.database, truth_path, [*acks, ack], killed_at_ns)


async def test_right_books_are_clean(books: Books) -> None:
    found = audit(books.database, Truth.read(books.truth_path), acks=books.acks, killed_at_ns=books.killed_at_ns)
    assert found.is_clean, str(found)
    assert set(found.metrics.values()) == {0}
    assert found.figures["records"] == 15
    assert found.figures["reservations"] == 14
    assert found.figures["attempts"] == 15
    assert found.figures["recovered"] == 2


DOCTORED = {
    "a doubled record": ("INSERT INTO usage_records SELECT * FROM usage_records LIMIT 1", "unique"),
    "a doubled attempt": ("INSERT INTO attempts SELECT * FROM attempts LIMIT 1", "unique"),
    "a lost record": ("DELETE FROM usage_records WHERE request_id = OK_RECORD", "acknowledged"),
    "a lost attempt": ("DELETE FROM attempts WHERE request_id = OK_RECORD", "unknown"),
    "a request lost with its attempts": (
        "DELETE FROM attempts WHERE request_id = OK_RECORD; DELETE FROM usage_records WHERE request_id = OK_RECORD",
        "unknown",
    ),
    "an attempt nobody made": ("UPDATE attempts SET id = 'att_0' WHERE outcome = 'ok'", "truth"),
    "a token more on a record": (
        "UPDATE usage_records SET output = output + 1 WHERE request_id = OK_RECORD",
        "sum",
    ),
    "a token more on an attempt": (
        "UPDATE attempts SET output = output + 1 WHERE request_id = OK_RECORD",
        "tokens",
    ),
    "a token more on a cut attempt": ("UPDATE attempts SET output = output + 1 WHERE outcome <> 'ok'", "tokens"),
    "two calls at work for one choice": (
        (
            "CREATE TEMP TABLE t AS SELECT * FROM attempts WHERE id = OK_ATTEMPT; UPDATE t SET id = 'att_0';"
            " INSERT INTO attempts SELECT * FROM t"
        ),
        "outcome",
    ),
    "negative tokens": ("UPDATE attempts SET output = -1", "shape"),
    "a token more on both": (
        (
            "UPDATE attempts SET output = output + 1 WHERE request_id = OK_RECORD;\n"
            "UPDATE usage_records SET output = output + 1 WHERE request_id = OK_RECORD"
        ),
        "tokens",
    ),
    "an input token less": (
        "UPDATE attempts SET uncached_input = uncached_input - 1 WHERE request_id = OK_RECORD",
        "tokens",
    ),
    "cached tokens as uncached": (
        "UPDATE attempts SET uncached_input = uncached_input + cache_read, cache_read = 0",
        "tokens",
    ),
    "a nano more": ("UPDATE usage_records SET cost_nanos = cost_nanos + 1 WHERE request_id = OK_RECORD", "cost"),
    "a nano less": ("UPDATE usage_records SET cost_nanos = cost_nanos - 1 WHERE request_id = OK_RECORD", "cost"),
    "a charge for an answer that wasn't given": (
        "UPDATE usage_records SET cost_nanos = 900 WHERE outcome = 'upstream_error' AND is_stream = 0",
        "cost",
    ),
    "another model's price": ("UPDATE usage_records SET price_id = (SELECT max(id) FROM prices)", "cost"),
    "a price from the future": ("UPDATE prices SET created_at_ms = created_at_ms + 86400000", "cost"),
    "a cut stream that says ok": (
        (
            "UPDATE attempts SET outcome = 'ok', error_code = NULL;\n"
            "UPDATE usage_records SET outcome = 'ok', error_code = NULL"
        ),
        "outcome",
    ),
    "an ok stream that says it failed": (
        "UPDATE attempts SET outcome = 'upstream_error', error_code = 'engine_failed' WHERE request_id = OK_RECORD",
        "outcome",
    ),
    "a count that says it was reported": ("UPDATE usage_records SET usage_source = 'reported'", "sum"),
    "a first token after the end": ("UPDATE usage_records SET ttft_ms = duration_ms + 1", "times"),
    "a queue longer than the request": ("UPDATE usage_records SET queue_ms = duration_ms + 1", "times"),
    "an unknown key": ("UPDATE usage_records SET key_id = 'key_0'", "reference"),
    "another project": ("UPDATE usage_records SET project_id = 'prj_0'", "reference"),
    "a doubled reservation": ("INSERT INTO reservations SELECT * FROM reservations LIMIT 1", "unique"),
    "a second end": (
        "INSERT INTO resolutions SELECT id + 1000, reservation_id, 'void', 0, resolved_at_ms FROM resolutions LIMIT 1",
        "unique",
    ),
    "a doubled transfer": ("INSERT INTO transfers SELECT * FROM transfers LIMIT 1", "unique"),
    "a doubled answer": ("INSERT INTO idempotency_keys SELECT * FROM idempotency_keys", "unique"),
    "nothing held": ("DELETE FROM reservations WHERE id = OK_HOLD", "held"),
    "an end of nothing": ("DELETE FROM reservations WHERE id = OK_HOLD", "together"),
    "an end without a record": ("DELETE FROM usage_records WHERE request_id = RECOVERED", "together"),
    "a record without an end": ("DELETE FROM resolutions WHERE reservation_id = OK_HOLD", "together"),
    "an open hold": (
        (
            "DELETE FROM resolutions WHERE reservation_id = (SELECT id FROM reservations WHERE request_id = RECOVERED);\n"
            "DELETE FROM usage_records WHERE request_id = RECOVERED"
        ),
        "open",
    ),
    "a mark left behind": (
        "INSERT INTO marks SELECT id, '[]', 0 FROM reservations WHERE request_id = RECOVERED",
        "open",
    ),
    "held for another model": ("UPDATE reservations SET model = 'other' WHERE id = OK_HOLD", "reference"),
    "held for another key": ("UPDATE reservations SET key_id = 'key_0' WHERE id = OK_HOLD", "reference"),
    "over before it began": ("UPDATE resolutions SET resolved_at_ms = 0", "times"),
    "a charge above the cost": ("UPDATE resolutions SET charge_nanos = charge_nanos + 1", "cost"),
    "a charge above the hold": (
        "UPDATE reservations SET amount_nanos = 1 WHERE id = OK_HOLD",
        "cost",
    ),
    "an ok request that is voided": (
        "UPDATE resolutions SET kind = 'void' WHERE reservation_id = OK_HOLD",
        "cost",
    ),
    "a failed answer that is posted": ("UPDATE resolutions SET kind = 'post' WHERE kind = 'void'", "cost"),
    "a late post of nothing that expired": (
        (
            "INSERT INTO transfers SELECT 9000, 'late_post', request_id, 0, organization_id, model, 1, NULL, 0"
            " FROM reservations WHERE id = OK_HOLD"
        ),
        "cost",
    ),
    "an expired hold that is charged": (
        "UPDATE resolutions SET kind = 'expire' WHERE reservation_id = OK_HOLD",
        "cost",
    ),
    "a price from the file that isn't in force yet": ("UPDATE prices SET effective_at_ms = 1 << 60", "cost"),
    "a price that was withdrawn": ("UPDATE prices SET is_withdrawn = 1", "cost"),
    "an upstream's cost": ("UPDATE attempts SET cost_nanos = cost_nanos + 1", "cost"),
    "an upstream's cost by a price": ("UPDATE attempts SET cost_id = (SELECT min(id) FROM prices)", "cost"),
    "an upstream's cost by nothing": ("UPDATE attempts SET cost_nanos = 1 WHERE cost_id IS NULL", "cost"),
    "a charge to whom was refused": ("UPDATE usage_records SET cost_nanos = 1 WHERE outcome = 'rejected'", "cost"),
    "a flag on what was refused": ("UPDATE usage_records SET flags = 'late' WHERE outcome = 'rejected'", "flags"),
    "absorbed too little": (
        "UPDATE transfers SET amount_nanos = amount_nanos - 1 WHERE kind = 'absorb'",
        "absorbed",
    ),
    "nothing absorbed": ("DELETE FROM transfers WHERE kind = 'absorb'", "absorbed"),
    "absorbed unsaid": ("UPDATE usage_records SET flags = ''", "flags"),
    "a recovery unsaid": ("UPDATE usage_records SET flags = '' WHERE request_id = RECOVERED", "flags"),
    "said to be late": ("UPDATE usage_records SET flags = 'late' WHERE request_id = OK_RECORD", "flags"),
    "recovered as ok": ("UPDATE usage_records SET outcome = 'ok' WHERE request_id = RECOVERED", "recovered"),
    "recovered though it wasn't streamed": (
        "UPDATE usage_records SET is_stream = 0 WHERE request_id = RECOVERED",
        "recovered",
    ),
    "recovered though its engine had finished long before": (
        "UPDATE attempts SET error_code = 'gateway_restarted' WHERE outcome = 'upstream_error'",
        "recovered",
    ),
    "recovered with more than was sent": (
        "UPDATE attempts SET output = 6000 WHERE request_id = RECOVERED",
        "tokens",
    ),
    "billed less than was delivered": (
        "UPDATE usage_records SET output = 1 WHERE outcome = 'upstream_error' AND is_stream = 1",
        "delivered",
    ),
    "a balance": ("UPDATE balances SET balance_nanos = balance_nanos + 1", "balance"),
    "a balance of nobody": ("INSERT INTO balances VALUES ('wallet/org_0', 1)", "balance"),
    "a lost balance": ("DELETE FROM balances WHERE account LIKE 'revenue/%'", "balance"),
    "a spent period": ("UPDATE budget_periods SET spent_nanos = spent_nanos - 1", "budget_sum"),
    "an overdrawn budget": ("UPDATE budgets SET limit_nanos = 10", "budget"),
    "a budget that isn't there": ("DELETE FROM budgets", "reference"),
    "held under no budget": (
        "UPDATE reservations SET budgets = NULL WHERE budgets IS NOT NULL",
        "scope",
    ),
    "held under all budgets but one": (
        "UPDATE reservations SET budgets = json_remove(budgets, '$[1]') WHERE budgets IS NOT NULL",
        "scope",
    ),
    "held under somebody else's budget": (
        ("UPDATE reservations SET budgets = (SELECT max(budgets) FROM reservations) WHERE budgets IS NULL"),
        "scope",
    ),
    "counted in another period": (
        "UPDATE reservations SET budgets = replace(budgets, 'week ', 'week 1') WHERE budgets IS NOT NULL",
        "scope",
    ),
    "a prepaid hold without credit": ("UPDATE reservations SET lots = NULL WHERE lots IS NOT NULL", "credit"),
    "credit that was never given": ("DELETE FROM transfers WHERE kind = 'grant'", "credit"),
    "credit of another amount": ("UPDATE transfers SET amount_nanos = 7 WHERE kind = 'grant'", "credit"),
    "credit that lapsed too early": ("UPDATE grants SET expires_at_ms = 1 << 60", "credit"),
    "credit that lapsed from a reservation": ("UPDATE transfers SET part = 1 WHERE kind = 'grant_expire'", "credit"),
    "a lot": ("UPDATE grant_lots SET remaining_nanos = remaining_nanos + 1", "lot"),
    "an hour": ("UPDATE usage_hours SET output = output + 1", "hours"),
    "an hour's cost": ("UPDATE usage_hours SET upstream_cost_nanos = upstream_cost_nanos + 1", "hours"),
    "a lost hour": ("DELETE FROM usage_hours", "hours"),
    "an answer of another request": ("UPDATE idempotency_keys SET request_id = RECOVERED", "answer"),
    "an answer that says otherwise": (
        "UPDATE idempotency_keys SET answer = CAST(replace(answer, 'completion_tokens\":10', 'completion_tokens\":11') AS BLOB)",
        "answer",
    ),
    "an answer of another project": (
        "UPDATE idempotency_keys SET project_id = (SELECT min(id) FROM projects)",
        "answer",
    ),
    "an answer where none may be kept": ("UPDATE projects SET is_storage_allowed = 0", "answer"),
    "served twice under a key": (
        "UPDATE usage_records SET client_request_id = 'key-1' WHERE request_id = OK_RECORD",
        "repeated",
    ),
}
RIGHT = {
    "a late settlement": (
        "INSERT INTO transfers SELECT 9000, 'late_post', request_id, 0, r.organization_id, r.model, s.charge_nanos, r.lots,"
        " s.resolved_at_ms FROM reservations r JOIN resolutions s ON s.reservation_id = r.id WHERE r.id = OK_HOLD;\n"
        "UPDATE resolutions SET kind = 'expire', charge_nanos = 0 WHERE reservation_id = OK_HOLD;\n"
        "UPDATE usage_records SET flags = 'late' WHERE request_id = OK_RECORD"
    ),
    "a price of more than five numbers, by which the same costs the same": (
        """UPDATE prices SET terms = '{"cache_write_1h":5,"tiers":[{"above_input_tokens":99999,"uncached_input":1,"""
        """"cache_read":1,"cache_write":1,"output":1,"reasoning":1}],"multipliers":{"batch":500000}}'"""
        " WHERE kind = 'price'"
    ),
}


@pytest.fixture(scope="module")
def plain(books: Books, module_path: Path) -> Path:
    """A copy of the books without the constraints, guards and triggers that would refuse a change."""
    copy = module_path / "plain.db"
    shutil.copy(books.database, copy)
    connection = sqlite.connect(str(copy))
    connection.execute("PRAGMA legacy_alter_table = ON")  # the view `entries` names tables that are gone for a moment
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        connection.execute(f"CREATE TABLE plain AS SELECT * FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE plain RENAME TO {table}")
    connection.commit()
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    found = audit(copy, Truth.read(books.truth_path), acks=books.acks, killed_at_ns=books.killed_at_ns)
    assert found.is_clean, f"the copy itself is right: {found}"
    return copy


@contextlib.contextmanager
def doctored(plain: Path, folder: Path) -> Iterator[tuple[Path, sqlite.Connection]]:
    copy = folder / "doctored.db"
    shutil.copy(plain, copy)
    with contextlib.closing(sqlite.connect(str(copy))) as connection:
        yield copy, connection


def filled_in(sql: str) -> str:
    names = {"OK_RECORD": OK_RECORD, "OK_ATTEMPT": OK_ATTEMPT, "OK_HOLD": OK_HOLD, "RECOVERED": RECOVERED}
    for name, value in names.items():
        sql = sql.replace(name, value)
    return sql


@pytest.mark.parametrize("how", DOCTORED)
async def test_doctored_books_are_caught(books: Books, plain: Path, short_path: Path, how: str) -> None:
    sql, rule = DOCTORED[how]
    truth = Truth.read(books.truth_path)
    with doctored(plain, short_path) as (copy, connection):
        connection.executescript(filled_in(sql))
        assert connection.total_changes, "the change found its row"
    found = audit(copy, truth, acks=books.acks, killed_at_ns=books.killed_at_ns)
    assert rule in found.rules_broken, str(found)
    assert found.metrics[METRICS.get(rule, "misstated")] > 0


@pytest.mark.parametrize("how", RIGHT)
async def test_books_that_are_right_in_another_way_are_clean(
    books: Books, plain: Path, short_path: Path, how: str
) -> None:
    truth = Truth.read(books.truth_path)
    with doctored(plain, short_path) as (copy, connection):
        connection.executescript(filled_in(RIGHT[how]))
    found = audit(copy, truth, acks=books.acks, killed_at_ns=books.killed_at_ns)
    assert found.is_clean, str(found)


async def test_two_answers_under_one_key_are_caught(books: Books) -> None:
    truth, again = Truth.read(books.truth_path), next(ack for ack in books.acks if ack.original_request_id)
    for name, value in (("body_sha256", "0"), ("original_request_id", books.acks[0].request_id)):
        other = msgspec.structs.replace(again, **{name: value})
        found = audit(books.database, truth, acks=[*books.acks, other], killed_at_ns=books.killed_at_ns)
        assert "repeated" in found.rules_broken, str(found)


async def test_a_recovered_stream_that_is_billed_for_less_than_its_marks_told_is_caught(books: Books) -> None:
    *others, cut = books.acks
    longer = [at - 10_000_000_000 for at in cut.delivered_ns]  # as if so much had come ten seconds before
    acks = [*others, msgspec.structs.replace(cut, delivered_ns=[*longer, *cut.delivered_ns])]
    found = audit(books.database, Truth.read(books.truth_path), acks=acks, killed_at_ns=books.killed_at_ns)
    assert found.rules_broken == {"delivered"}, str(found)


async def test_what_no_kill_explains_is_caught(books: Books) -> None:
    found = audit(books.database, Truth.read(books.truth_path), acks=books.acks)
    assert found.rules_broken == {"unknown"}, str(found)


async def test_the_program_says_what_it_finds(
    books: Books, capsys: pytest.CaptureFixture[str], short_path: Path
) -> None:
    killed = ["--killed-at", str(books.killed_at_ns)]
    assert main([str(books.database), str(books.truth_path), *killed]) == 0
    assert "0 findings" in capsys.readouterr().out
    shorter = short_path / "truth.jsonl"
    lines = books.truth_path.read_bytes().splitlines(keepends=True)
    shorter.write_bytes(b"".join(line for line in lines if b'"serial":1,' not in line))
    assert main([str(books.database), str(shorter), *killed]) == 1
    assert "no engine received it" in capsys.readouterr().out
