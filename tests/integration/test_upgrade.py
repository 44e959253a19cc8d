"""The database's life beside a real platform: refused until it is upgraded, backed up and checked while it serves, restored."""

import asyncio
import shutil
import sys
from pathlib import Path

from headwater.keys import new_key
from headwater.ledger.store import open_writer
from headwater.ledger.verify import verify
from tests.integration.bodies import chat_body
from tests.rig.platform import Platform, config, headwater, running_platform, until, upstream
from tests.rig.processes import fake_engine
from tests.unit.ledger.old import old_database

MODEL = "m:tokens=3"
EVERY_MOMENT = (
    "import sys, headwater.platform as platform; from headwater.cli.main import main\n"
    "platform.ARCHIVE_INTERVAL_S = 0.2; sys.argv = ['headwater', *sys.argv[4:]]; main()"
)
"""Runs the command that follows it with archiving every moment instead of every hour."""
SPAN = ("--start", "2026-09-01", "--end", "2026-10-01")


async def test_a_platform_of_an_older_version_is_upgraded_and_goes_on_with_its_keys_and_numbers(
    short_path: Path,
) -> None:
    async with fake_engine() as engine:
        platform = Platform(short_path, config(upstreams=[upstream("fake", engine.base_url, [MODEL])]))
        platform.database.parent.mkdir()
        old_database(platform.database, records_count=70)
        made = new_key()
        connection = open_writer(platform.database)
        connection.execute("UPDATE api_keys SET hash = ? WHERE id = 'key_1'", (made.hash,))
        connection.close()
        platform.key, platform.key_id = made.secret, "key_1"
        try:
            await platform.start(wait=False)
            assert await platform.ended() == 1
            said = platform.log_tail()
            assert said.count("error: ") == 1
            assert "has schema 0001" in said
            assert "headwater db upgrade" in said
            assert "Traceback" not in said

            done = await platform.cli("db", "upgrade")
            assert "went from schema 0001" in done.stdout
            await platform.start()
            got = await platform.ask(chat_body(f"fake/{MODEL}"))
            assert got.finish_reason == "stop", "a key of the old version opens the new one"
            assert len(platform.records()) == 71
            by_key = (await platform.cli("usage", *SPAN, "--by", "key", "--json")).json()
            assert sum(row["requests_count"] for row in by_key) == 70
            assert sum(row["cost_nanos"] for row in by_key) == sum(3 * n for n in range(70) if n % 7)
            assert await platform.stop() == 0
        finally:
            await platform.end()


async def test_a_platform_that_serves_is_backed_up_and_checked_and_its_backup_starts_elsewhere(
    short_path: Path,
) -> None:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [MODEL])])
        async with running_platform(text, short_path / "a") as platform:
            ended = asyncio.Event()
            served: list[str] = []

            async def serve() -> None:
                while not ended.is_set():
                    got = await platform.ask(chat_body(f"fake/{MODEL}"))
                    assert got.finish_reason == "stop"
                    served.append(got.headers["x-request-id"])

            callers = [asyncio.ensure_future(serve()) for _ in range(4)]
            backup = (await platform.cli("db", "backup", "--json")).json()
            during = len(served)
            checked = (await platform.cli("db", "check", "--json")).json()
            ended.set()
            await asyncio.gather(*callers)
            assert during > 0, "requests were served while the copy was made"
            assert checked["problems"] == []
            assert not checked["is_whole"]
            assert len(platform.records()) == len(served), "no settlement was lost beside the copy"
            key = platform.key

        (short_path / "b").mkdir()
        other = Platform(short_path / "b", text)
        path = platform.directory / backup["path"]
        done = await other.cli("db", "restore", str(path))
        assert "Now: headwater up" in done.stdout
        other.key, other.key_id = key, platform.key_id
        try:
            await other.start()
            kept = {record["request_id"] for record in other.records()}
            assert kept <= set(served)
            assert (await other.ask(chat_body(f"fake/{MODEL}"))).finish_reason == "stop"
            assert await other.stop() == 0
        finally:
            await other.end()


async def test_a_restore_is_refused_while_a_platform_runs_and_brings_back_what_a_kill_left(short_path: Path) -> None:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [MODEL])])
        async with running_platform(text, short_path / "p") as platform:
            await platform.ask(chat_body(f"fake/{MODEL}"))
            backup = (await platform.cli("db", "backup", "--json")).json()["path"]
            refused = await platform.cli("db", "restore", backup, check=False)
            assert refused.status == 1
            assert str(platform.pid) in refused.stderr
            await platform.ask(chat_body(f"fake/{MODEL}"))
            await platform.kill()
            assert platform.database.with_name("headwater.db-wal").stat().st_size > 0
            done = (await platform.cli("db", "restore", backup, "--json")).json()
            assert len(platform.records()) == 1
            shutil.move(platform.database, platform.database.with_name("restored.db"))
            aside = platform.directory / done["aside"] / "headwater.db"
            shutil.copy(aside, platform.database)
            assert len(platform.records()) == 2, "what the killed platform had settled is kept aside, its log folded in"


async def test_a_start_leaves_no_half_of_a_database(short_path: Path) -> None:
    """The first start makes the newest schema; nothing asks for an upgrade then."""
    done = await headwater("keys", "create", "--json", cwd=short_path)
    assert done.json()["key"].startswith("hw-")
    assert not (short_path / "data" / "backups").exists()
    told = (await headwater("db", "upgrade", "--json", cwd=short_path)).json()
    assert told["from_schema"] == told["to_schema"]


async def test_a_running_platform_archives_what_is_old_by_itself_and_serves_on(short_path: Path) -> None:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, [MODEL])], store={"archive_after_days": 1})
        (short_path / "data").mkdir()
        old_database(short_path / "data" / "headwater.db", records_count=300)
        path = short_path / "headwater.toml"
        path.write_text(text)
        await headwater("db", "upgrade", cwd=short_path)
        before = (await headwater("usage", *SPAN, "--by", "model", "--json", cwd=short_path)).json()
        async with running_platform(text, short_path, wrapper=[sys.executable, "-c", EVERY_MOMENT]) as platform:
            [archived] = await until(lambda: platform.rows("SELECT * FROM archives WHERE records_count = 300"))
            got = await platform.ask(chat_body(f"fake/{MODEL}"))
            assert got.finish_reason == "stop"
            assert [record["request_id"] for record in platform.records()] == [got.headers["x-request-id"]]
            assert (short_path / "data" / "archives" / archived["file"]).exists()
            assert (await platform.cli("usage", *SPAN, "--by", "model", "--json")).json() == before
            refused = await platform.cli("db", "archive", "--older-than", "1d", check=False)
            assert refused.status == 1
            assert str(platform.pid) in refused.stderr
            assert verify(platform.database, now_ms=0).is_ok
            assert await platform.stop() == 0
        assert sum(row["requests_count"] for row in before) == 300
