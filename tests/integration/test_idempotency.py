"""T7 at its short size: however often a request is sent under one key, it is served and charged once; twins are caught."""

import time

from gate import idempotency_storm
from gate.rows import missed
from gate.state import State
from tests.integration.gate_runs import Told

SEED = 1


async def test_a_request_sent_fifty_times_at_once_is_served_and_charged_once() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await idempotency_storm.run("short", SEED, State.in_memory("t7", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "t7"}
    assert figures["keys"] == idempotency_storm.KEYS["short"]
    assert figures["requests"] > idempotency_storm.TWINS_PER_KEY * figures["keys"]
    for metric in ("conflicts", "refused", "replays"):
        assert figures[metric] > 0, metric
