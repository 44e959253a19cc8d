"""Guards the process itself: when its event loop is late or its memory short, load is refused, band after band.

One task samples for all requests; a request reads one attribute. What to refuse is decided in
`headwater.scheduling.shedding`, explained in `docs/explanation/overload.md`.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Final

import structlog

from headwater.errors import Overloaded
from headwater.gateway import vitals
from headwater.gateway.telemetry import Telemetry
from headwater.scheduling.bands import Band
from headwater.scheduling.shedding import LEVEL_MAX, Guard, back_in_s, next_level, refused_share

log = structlog.get_logger()

SAMPLE_S: Final = 0.05
"""How often the event loop's lag is measured."""
DECIDE_S: Final = 0.25
"""How often the level is decided anew and memory is read."""
LAG_WEIGHT: Final = 0.1
"""Of a new sample in the smoothed lag: it follows within about half a second."""
SAMPLES_MAX: Final = 200
"""A loop that stood still missed many samples; more than so many are not made up for."""
MEMORY_HIGH, MEMORY_LOW = 0.9, 0.8
"""Of the memory bound: where refusing begins and where it ends. At the bound everything is refused."""
TRIM_EVERY_S: Final = 5.0
ROUTE: Final = b"/v1/chat/completions"
_BAND_NAMES: Final = ("interactive", "standard", "batch")


class Overload:
    """What is refused now. Made on the event loop; `watch()` is its one task."""

    def __init__(
        self,
        *,
        lag_max_s: float,
        memory_bytes_max: int | None,
        telemetry: Telemetry,
        resident_bytes: Callable[[], int | None] = vitals.resident_bytes,
    ) -> None:
        """lag_max_s: over it shedding begins, under half of it it ends. memory_bytes_max: None derives it from the machine."""
        self.level = 0.0
        """0 refuses nothing; see `headwater.scheduling.shedding`. Every request reads this."""
        self.memory_bytes_max = vitals.derived_memory_bytes_max() if memory_bytes_max is None else memory_bytes_max
        self.lag_s = 0.0
        self._lag_max_s = lag_max_s
        self._telemetry = telemetry
        self._resident_bytes = resident_bytes
        self.on_level: Callable[[bool], None] = lambda _: None
        """Told whether standard requests are being refused, whenever the level is decided."""
        self._owed = [0.0, 0.0, 0.0]
        self._trimmed_s = 0.0
        telemetry.memory_bytes_max.set(self.memory_bytes_max)
        telemetry.shed_level.set_function(lambda: self.level)

    def admit(self, band: int) -> None:
        """Refuse a request of this band (0 interactive, 1 standard, 2 batch) if it is its turn. Raises Overloaded.

        Ask only when `level` isn't 0. A share is refused evenly: of a third, every third.
        """
        owed = self._owed[band] + refused_share(self.level, band)
        if owed < 1.0:
            self._owed[band] = owed
            return
        self._owed[band] = owed - 1.0
        self._telemetry.shed.labels(_BAND_NAMES[band]).inc()
        raise Overloaded(
            f"The platform has more work than it can do and refuses {_BAND_NAMES[band]} requests for now.",
            retry_after_s=back_in_s(self.level, band),
        )

    def refuse_early(self, path: bytes, data: bytes) -> Overloaded | bool:
        """Why a request is refused that came with these bytes, before anything is done for it; whether it was asked about.

        A tier that a body names has to be read to be believed, and so has a body that isn't here yet; all others are standard.
        """
        is_standard = path.startswith(ROUTE) and data.endswith(b"}") and b"service_tier" not in data
        if not is_standard and self.level < LEVEL_MAX:
            return False
        try:
            self.admit(Band.STANDARD if is_standard else Band.INTERACTIVE)
        except Overloaded as error:
            self._telemetry.refused(error.code)
            return error
        return True

    async def watch(self) -> None:
        """Sample and decide, for ever; cancel it to stop."""
        # Not the loop's own clock: uvloop's stands still while callbacks run.
        due_s = decided_s = time.monotonic()
        while True:
            due_s = max(due_s + SAMPLE_S, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            now_s = time.monotonic()
            self._note(now_s - due_s)
            if now_s - decided_s >= DECIDE_S:
                self._decide(now_s, now_s - decided_s)
                decided_s = now_s

    def _note(self, lag_s: float) -> None:
        """Take one measured lag, and the samples that were due while the loop stood still, each a period shorter."""
        self.lag_s += LAG_WEIGHT * (lag_s - self.lag_s)
        observe = self._telemetry.loop_lag.observe
        for _ in range(SAMPLES_MAX):
            observe(max(0.0, lag_s))
            lag_s -= SAMPLE_S
            if lag_s <= 0.0:
                return

    def _decide(self, now_s: float, passed_s: float) -> None:
        guards = [Guard(self.lag_s, self._lag_max_s, self._lag_max_s / 2)]
        used = self._resident_bytes()
        if used is not None:
            most = self.memory_bytes_max
            if used > MEMORY_HIGH * most and now_s - self._trimmed_s >= TRIM_EVERY_S:
                self._trimmed_s = now_s
                gc.collect()
                vitals.give_memory_back()
                used = self._resident_bytes() or used
            guards.append(Guard(used, MEMORY_HIGH * most, MEMORY_LOW * most, most))
        was, self.level = self.level, next_level(self.level, guards, passed_s=passed_s)
        self.on_level(self.level > 1.0)
        lag_ms, most = round(self.lag_s * 1000, 1), self.memory_bytes_max
        if self.level and not was:
            log.warning("shedding_began", lag_ms=lag_ms, resident_bytes=used, memory_bytes_max=most)
        elif was and not self.level:
            log.warning("shedding_ended", lag_ms=lag_ms, resident_bytes=used, memory_bytes_max=most)
