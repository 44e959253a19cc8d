"""What a verification found, as data and as text."""

from typing import Literal

import msgspec

SHOWN_MAX = 20
"""Differences that are named; all of them are counted."""


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not as the log says: which row, which of its columns, what is stored, what was recomputed.

    id: the row's primary key, its parts with a space between. None on either side: there is nothing.
    """

    table: str
    id: str
    what: str
    stored: int | str | None
    recomputed: int | str | None

    def __str__(self) -> str:
        return f"{self.table} {self.id}: {self.what} is {_shown(self.stored)}, should be {_shown(self.recomputed)}"


class Findings:
    """Collects differences in the order they are met, which is the order of the log."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Difference] = []

    def add(
        self, table: str, row_id: object, what: str, stored: int | str | None, recomputed: int | str | None
    ) -> None:
        """Note one difference."""
        self.count += 1
        if len(self.first) < SHOWN_MAX:
            self.first.append(Difference(table, str(row_id), what, stored, recomputed))


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one verification of a whole database.

    differences: the first SHOWN_MAX of differences_count. notes: what is allowed but worth knowing. checked: how many
    rows or sums of each kind were compared.
    """

    database: str
    verdict: Literal["ok", "differs"]
    differences_count: int
    differences: list[Difference]
    notes: list[str]
    checked: dict[str, int]
    duration_s: float

    @property
    def is_ok(self) -> bool:
        """Whether every row and sum is as the log says."""
        return self.verdict == "ok"

    @property
    def rows_per_s(self) -> float:
        """Rows and sums compared in a second."""
        return sum(self.checked.values()) / max(self.duration_s, 1e-6)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {what}" for what, count in self.checked.items())
        lines = [
            f"Checked {counts}",
            f"in {self.duration_s:.1f} s ({self.rows_per_s:,.0f} rows/s): {self.database}",
            *(f"note: {note}" for note in self.notes),
        ]
        if self.is_ok:
            return "\n".join([*lines, "The books balance: every row and every sum is as the log says."])
        first, *others = self.differences
        lines += ["", "The books do not balance. The first row that differs:", f"  {first}"]
        if others:
            lines += [f"and {self.differences_count - 1:,} more:", *(f"  {one}" for one in others)]
            if self.differences_count > len(self.differences):
                lines.append(f"  … ({self.differences_count - len(self.differences):,} not shown)")
        return "\n".join(lines)


def _shown(value: int | str | None) -> str:
    return "missing" if value is None else str(value)
