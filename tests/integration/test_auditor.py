"""The auditor passes books that are right and catches each way of being wrong: the twins of the promises it checks."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.integration.bodies import chat_body
from tests.rig.auditor import Ack, audit, main
from tests.rig.platform import config, running_platform, upstream
from tests.rig.processes import fake_engine
from tests.rig.truth import Truth

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODELS = ["m:tokens=7,reasoning=3,cached=2", "m:tokens=7,cut_after=3", "m:tokens=5,no_usage"]
OK_RECORD = "(SELECT min(request_id) FROM usage_records WHERE outcome = 'ok' AND choices_count = 1)"


@dataclass(frozen=True)
class Books:
    database: Path
    truth_path: Path
    acks: list[Ack]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def books(module_path: Path) -> AsyncIterator[Books]:
    """The books of a few requests of every kind, closed."""
    truth_path = module_path / "truth.jsonl"
    async with fake_engine(truth_path=truth_path) as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, MODELS)])
        async with running_platform(text, module_path / "p") as platform:
            bodies = [chat_body(f"fake/{model}", stream=stream) for model in MODELS for stream in (True, False)]
            bodies += [chat_body(f"fake/{MODELS[0]}", n=3), chat_body("fake/unknown")]
            got = await asyncio.gather(*map(platform.ask, bodies))
            acks = [
                Ack(
                    request_id=one.headers["x-request-id"],
                    status=one.status or 0,
                    is_complete=one.finish_reason is not None,
                    output_tokens=None if one.usage is None else one.usage["completion_tokens"],
                )
                for one in got
            ]
            await engine.settled(9)
            assert await platform.stop() == 0
            yield Books(platform.database, truth_path, acks)


async def test_right_books_are_clean(books: Books) -> None:
    found = audit(books.database, Truth.read(books.truth_path), acks=books.acks)
    assert found.is_clean, str(found)
    assert found.figures["records"] == 7
    assert found.figures["attempts"] == 9


DOCTORED = {
    "a doubled record": ("INSERT INTO usage_records SELECT * FROM usage_records LIMIT 1", "unique"),
    "a doubled attempt": ("INSERT INTO attempts SELECT * FROM attempts LIMIT 1", "unique"),
    "a lost record": ("DELETE FROM usage_records WHERE request_id = OK_RECORD", "acknowledged"),
    "a lost attempt": ("DELETE FROM attempts WHERE request_id = OK_RECORD", "truth"),
    "a request lost with its attempts": (
        "DELETE FROM attempts WHERE request_id = OK_RECORD; DELETE FROM usage_records WHERE request_id = OK_RECORD",
        "truth",
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
}


@pytest.mark.parametrize("how", DOCTORED)
async def test_doctored_books_are_caught(books: Books, short_path: Path, how: str) -> None:
    sql, rule = DOCTORED[how]
    copy = short_path / "doctored.db"
    shutil.copy(books.database, copy)
    connection = sqlite.connect(str(copy))
    for table in ("usage_records", "attempts", "prices"):  # without the constraints that would refuse it
        connection.execute(f"CREATE TABLE plain AS SELECT * FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE plain RENAME TO {table}")
    connection.commit()
    truth = Truth.read(books.truth_path)
    assert audit(copy, truth, acks=books.acks).is_clean, "the copy itself is right"
    connection.executescript(sql.replace("OK_RECORD", OK_RECORD))
    connection.close()
    found = audit(copy, truth, acks=books.acks)
    assert rule in found.rules_broken, str(found)


async def test_the_program_says_what_it_finds(
    books: Books, capsys: pytest.CaptureFixture[str], short_path: Path
) -> None:
    assert main([str(books.database), str(books.truth_path)]) == 0
    assert "0 findings" in capsys.readouterr().out
    shorter = short_path / "truth.jsonl"
    lines = books.truth_path.read_bytes().splitlines(keepends=True)
    shorter.write_bytes(b"".join(line for line in lines if b'"serial":1,' not in line))
    assert main([str(books.database), str(shorter)]) == 1
    assert "no engine received it" in capsys.readouterr().out
