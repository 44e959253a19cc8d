import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from headwater.housekeeping import every
from headwater.ledger.background_verify import BackgroundVerify
from headwater.ledger.verify_result import VerifyResult
from tests.rig.platform import until
from tests.unit.ledger.doctored import doctor

WAIT_S = 20.0


def children() -> set[str]:
    """Process ids of this process's children."""
    return {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


async def test_sound_books_are_reported_again_and_again(database: Path) -> None:
    results: asyncio.Queue[VerifyResult] = asyncio.Queue()
    verify = BackgroundVerify(database, results.put_nowait)
    with capture_logs() as logs:
        task = asyncio.create_task(every(0.0, verify.verify_once))
        for _ in range(2):
            assert (await asyncio.wait_for(results.get(), WAIT_S)).is_ok
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert {line["event"] for line in logs} == {"ledger_verified"}
    assert logs[0]["log_level"] == "info"


async def test_books_that_differ_are_an_error_that_names_the_row(database: Path) -> None:
    doctor(database, "INSERT INTO balances VALUES ('wallet/org_9', 5)")
    results: list[VerifyResult] = []
    with capture_logs() as logs:
        await BackgroundVerify(database, results.append).verify_once()
    assert [result.verdict for result in results] == ["differs"]
    [line] = logs
    assert (line["event"], line["log_level"]) == ("ledger_differs", "error")
    assert line["first"] == "balances wallet/org_9: balance_nanos is 5, should be missing"


async def test_what_can_not_be_read_is_a_warning_and_no_result(tmp_path: Path) -> None:
    results: list[VerifyResult] = []
    with capture_logs() as logs:
        assert await BackgroundVerify(tmp_path / "none.db", results.append).verify_once() is None
    assert results == []
    [line] = logs
    assert (line["event"], line["log_level"], line["status"]) == ("ledger_not_verified", "warning", 2)
    assert "doesn't exist" in line["error"]


async def test_cancelling_ends_the_process_under_way(database: Path) -> None:
    before = children()
    task = asyncio.create_task(BackgroundVerify(database, lambda _: None).verify_once())
    pids = await until(lambda: children() - before)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children() & pids
