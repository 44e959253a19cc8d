"""T4 at its short size: what was acknowledged survives a power cut at any moment, and broken builds are caught."""

import pytest

from gate import power_cut
from gate.children import strace_refusal
from gate.progress import Silent
from gate.rows import missed
from gate.state import State

REFUSAL = strace_refusal()
SEED = 1


@pytest.mark.skipif(REFUSAL is not None, reason=f"nothing can be traced here: {REFUSAL}")
async def test_everything_acknowledged_survives_a_power_cut_once_and_whole() -> None:
    state = State.in_memory("t4", "short", SEED)
    rows = await power_cut.run("short", SEED, state, Silent())
    assert missed(rows) == []
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "t4"}
    assert figures["commits"] == 40
    assert figures["images"] >= 2 * figures["commits"]
    assert {row["test"] for row in rows if row["metric"] == "twin_caught"} == {f"t4/{twin}" for twin in power_cut.TWINS}
