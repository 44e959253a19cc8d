"""The soak at its short size: memory stays flat, nothing is left over, the books are right; and a leak is noticed."""

import time

from gate import soak
from gate.rows import missed
from gate.state import State
from tests.integration.gate_runs import Told

SEED = 1


async def test_thousands_of_requests_leave_nothing_behind() -> None:
    told, began_s = Told(), time.monotonic()
    rows = await soak.run("short", SEED, State.in_memory("soak", "short", SEED), told)
    print(rows, f"{time.monotonic() - began_s:.1f} s")
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "soak"}
    assert figures["requests"] == sum(soak.STEPS["short"])
    assert figures["left"] == figures["requests"] // 20
    assert figures["faulty"] > 0
    assert figures["refused"] == 0


def test_half_stream_a_twentieth_is_faulty_and_a_twentieth_leaves() -> None:
    bodies, leavers = soak.bodies()
    assert sum(b'"stream":true' in bytes(body) for body in bodies) == len(bodies) // 2
    assert len(leavers) == len(bodies) // 20
    assert sum(any(name.encode() in bytes(body) for name in soak.FAULTY) for body in bodies) == len(bodies) // 20
