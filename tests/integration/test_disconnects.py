"""T3 at its short size: clients that leave stop the work, pay for what was made, and leave nothing; on every API there is."""

import time
from pathlib import Path

from starlette.routing import Route

from gate import disconnects
from gate.rows import missed
from gate.state import State
from headwater.clock import SystemClock
from headwater.gateway.app import Gateway
from headwater.ledger.book import Book
from headwater.ledger.migrate import main as migrate
from headwater.ledger.store import open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.settings import load
from tests.integration.gate_runs import Told

SEED = 1


async def test_clients_that_leave_stop_the_work_and_pay_for_what_was_made() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await disconnects.run("short", SEED, State.in_memory("t3", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "t3"}
    assert figures["leavers"] == disconnects.LEAVERS["short"]
    assert all(figures[how] > 0 for how in disconnects.STREAM_HOWS)


async def test_every_api_that_makes_an_engine_work_is_left(tmp_path: Path) -> None:
    """A new route that takes requests fails here until its clients leave too."""
    database = tmp_path / "headwater.db"
    migrate(database)
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    settings = load(config_path=None, environ={}).settings
    gateway = Gateway(settings, writer=writer, database=database, book=Book(), epoch=1, clock=SystemClock())
    routes = [route for route in gateway.router.routes if isinstance(route, Route)]
    assert len(routes) == len(gateway.router.routes)
    assert {route.path for route in routes if "POST" in (route.methods or ())} == set(disconnects.APIS)
    await gateway.close()
    writer.close()
