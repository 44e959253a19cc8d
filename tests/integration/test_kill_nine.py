"""T1 at its short size: kills at any moment lose nothing and charge nothing twice; broken builds are caught."""

import time

from gate import kill_nine
from gate.rows import missed
from gate.state import State
from tests.integration.gate_runs import Told

SEED = 1


async def test_a_platform_that_is_killed_again_and_again_keeps_right_books() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await kill_nine.run("short", SEED, State.in_memory("t1", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "t1"}
    assert figures["kills"] >= kill_nine.KILLS["short"]
    for metric in ("acknowledged", "replayed", "recovered", "recovered_with_tokens", "audits"):
        assert figures[metric] > 0, metric
