"""The rig about leaving, at its short size, on a real engine: its one slot serves the next request at once."""

import time

import pytest

from gate import cancel
from gate.rows import missed
from gate.state import State
from tests.integration.gate_runs import Told

SEED = 1
pytestmark = pytest.mark.model


async def test_whoever_leaves_gives_the_slot_back_at_once() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await cancel.run("short", SEED, State.in_memory("cancel", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "cancel"}
    assert figures["leavers"] == cancel.LEAVERS["short"]
