"""Broken builds of Headwater, each wrong in one way on purpose: what a test of a promise must catch.

    python -m tests.rig.twins NAME up …           as `headwater up …`, broken
    platform.start(wrapper=wrapper(NAME), …)      the same for the rig's platform, whose own command follows

A twin is a function that changes the product before its main runs; processes that the platform starts are sound. Add
one to `TWINS`, beside the test that catches it.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from tests.rig import call_twins, ledger_twins, load_twins
from tests.rig.processes import ROOT


def acknowledge_before_commit() -> None:
    """Answers end as soon as their settlement is handed over, whether it is ever committed or not."""
    from headwater.gateway.settle import Settler

    settle: Callable[..., asyncio.Future[None]] = Settler.settle

    def settle_early(self: Settler, *arguments: Any, **named: Any) -> "asyncio.Future[None]":
        real = settle(self, *arguments, **named)
        real.add_done_callback(lambda done: done.cancelled() or done.exception())
        told = asyncio.get_running_loop().create_future()
        told.set_result(None)
        return told

    Settler.settle = settle_early  # type: ignore[method-assign]


def first_come() -> None:
    """Whoever came first is served first: no fairness."""
    from headwater.gateway import pool
    from tests.rig.fair_queues import FirstCome

    pool.__dict__["FairQueue"] = FirstCome


TWINS: dict[str, Callable[[], None]] = {
    **load_twins.TWINS,
    "acknowledge_before_commit": acknowledge_before_commit,
    "first_come": first_come,
    **call_twins.TWINS,
    **ledger_twins.TWINS,
}

ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
"""What a broken build needs to find this module; for `running_platform(…, env=…)`."""


def wrapper(name: str) -> list[str]:
    """The command to run the platform under, so that it is that twin."""
    if name not in TWINS:
        raise KeyError(f"there is no twin {name}; there are {', '.join(TWINS)}")
    return [sys.executable, "-m", "tests.rig.twins", name]


def main(argv: list[str]) -> None:
    """Break the product, then run its command line with what follows the twin's name (a `python -m headwater` is left out)."""
    name, *command = argv
    if "-m" in command and command.index("-m") == 1:
        command = command[3:]
    TWINS[name]()
    from headwater.cli.main import main as headwater

    sys.argv = ["headwater", *command]
    headwater()


if __name__ == "__main__":
    main(sys.argv[1:])
