"""Every rig by its name. A rig is a module with `NAME` and `run`; gate/README.md says how one is written."""

import importlib
from typing import Protocol, cast

from gate.progress import Progress
from gate.rows import Row, Size
from gate.state import State

RIGS: dict[str, str] = {
    "t1": "gate.kill_nine",
    "t2": "gate.budget_race",
    "t3": "gate.disconnects",
    "t4": "gate.power_cut",
    "t7": "gate.idempotency_storm",
    "t8": "gate.simulation",
    "t9": "gate.io_faults",
    "faults": "gate.faults",
    "supervision": "gate.supervision",
    "overload": "gate.overload",
    "limits": "gate.rate_limits",
    "soak": "gate.soak",
    "cancel": "gate.cancel",
}


class Rig(Protocol):
    """What a rig's module has."""

    NAME: str

    async def run(self, size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
        """Run every round that `state` doesn't have yet; return the rows of all rounds."""


def load(name: str) -> Rig:
    """Import the rig of that name. Raises KeyError for one that isn't there."""
    return cast("Rig", importlib.import_module(RIGS[name]))
