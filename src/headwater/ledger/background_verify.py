"""Prove the books again and again beside the running platform, in a process of its own that yields to everything else."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from headwater.ledger.verify_result import VerifyResult

log = structlog.get_logger()

NICE = 19
SAID_CHARACTERS_MAX = 500


class BackgroundVerify:
    """Runs `headwater.ledger.verify`; cancelling whoever waits for it ends that process."""

    def __init__(self, database: Path, on_result: Callable[[VerifyResult], None]) -> None:
        """on_result: called on the event loop."""
        self._database = database
        self._on_result = on_result

    async def verify_once(self) -> VerifyResult | None:
        """One verification, reported; None when it could not be made."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headwater.ledger.verify", str(self._database), "--json", "--nice", str(NICE)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            told, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            result = msgspec.json.decode(told, type=VerifyResult)
        except msgspec.DecodeError:
            reason = said.decode(errors="replace").strip()[-SAID_CHARACTERS_MAX:]
            log.warning("ledger_not_verified", status=process.returncode, error=reason)
            return None
        if result.is_ok:
            log.info("ledger_verified", rows_count=sum(result.checked.values()), duration_s=result.duration_s)
        else:
            first = str(result.differences[0])
            log.error("ledger_differs", differences_count=result.differences_count, first=first)
        self._on_result(result)
        return result
