"""T9 at its short size: a failing disk loses nothing, doubles nothing and is told to everybody; a broken build is caught."""

import pytest

from gate import io_faults
from gate.children import strace_refusal
from gate.rows import missed
from gate.state import State

REFUSAL = strace_refusal()
SEED = 1


class Told:
    """Keeps what a rig says, to show it when the test fails."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, what: str, total: int, *, done: int = 0) -> None:
        """Nothing."""

    def advance(self, count: int = 1) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)


@pytest.mark.skipif(REFUSAL is not None, reason=f"nothing can be traced here: {REFUSAL}")
async def test_a_failing_disk_ends_the_platform_in_words_and_the_books_stay_right() -> None:
    told = Told()
    rows = await io_faults.run("short", SEED, State.in_memory("t9", "short", SEED), told)
    assert missed(rows) == [], told.said
    figures = {row["metric"]: row["value"] for row in rows if row["test"] == "t9"}
    assert figures["faults"] - figures["full_disks"] == 2 * len(io_faults.KS["short"])
    assert figures["acknowledged"] > 0
    assert figures["refused_in_words"] > 0
    assert figures["ready_said_so"] > 0
