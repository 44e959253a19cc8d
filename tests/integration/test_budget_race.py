"""T2 at its short size: no number of callers overdraws a budget, and a kill strands none of it; broken builds are caught."""

import time

from gate import budget_race
from gate.rows import missed
from gate.state import State
from tests.integration.gate_runs import Told

SEED = 1


async def test_two_hundred_callers_spend_exactly_what_there_is() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await budget_race.run("short", SEED, State.in_memory("t2", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "t2"}
    assert figures["rounds"] == budget_race.ROUNDS["short"]
    assert figures["kills"] == 2
    assert figures["samples"] > 20
    rounds = budget_race.plan(budget_race.ROUNDS["short"], SEED)
    assert figures["served"] == sum(one.room_count for one in rounds)
    assert {one.tight for one in rounds} == set(budget_race.SCOPES)
    assert {one.tight for one in budget_race.plan(50, SEED) if one.kill_after} == set(budget_race.SCOPES)
