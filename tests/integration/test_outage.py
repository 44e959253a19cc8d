"""The faults rig at its short size: faults with and without a fallback, time-outs, outages of a few seconds, twins."""

import time

from gate import faults
from gate.rows import missed
from gate.state import State
from tests.integration.gate_runs import Told

SEED = 1


async def test_faults_are_answered_by_a_fallback_and_outages_are_cheap() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await faults.run("short", SEED, State.in_memory(faults.NAME, "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
