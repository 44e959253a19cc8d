"""What an operator does to a running platform, over its admin socket: quick, and in force when it returns."""

from typing import Any

import msgspec

from tests.rig.clients import call
from tests.rig.platform import Platform


async def administer(platform: Platform, verb: str, **wish: object) -> Any:
    """Carry out a verb such as `budgets.create` and return its answer. Raises AssertionError with the platform's words."""
    path = platform.database.parent / "admin.sock"
    got = await call("http://headwater", "POST", f"/call/{verb}", wish, unix=str(path))
    assert got.status == 200, f"{verb} {wish}: {got.status} {got.body.decode(errors='replace')}"
    return msgspec.json.decode(got.body)
