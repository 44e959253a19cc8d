"""The overload guards: what they read, whom they refuse, what they say."""

import asyncio
import time
from collections import Counter

import pytest

from headwater.errors import Overloaded
from headwater.gateway import vitals
from headwater.gateway.overload import SAMPLE_S, Overload
from headwater.gateway.telemetry import Telemetry
from headwater.ledger.writer import LedgerWriter
from headwater.scheduling.shedding import LEVEL_MAX

BATCH, STANDARD, INTERACTIVE = 2, 1, 0
MIB = 2**20


@pytest.fixture
def telemetry(writer: LedgerWriter) -> Telemetry:
    return Telemetry(writer)


def sample(telemetry: Telemetry, name: str, **labels: str) -> float:
    found = telemetry.registry.get_sample_value(name, labels)
    assert found is not None
    return found


async def test_a_share_is_refused_evenly_and_counted_by_band(telemetry: Telemetry) -> None:
    overload = Overload(lag_max_s=1, memory_bytes_max=None, telemetry=telemetry)
    overload.level = 1.25
    refused: Counter[int] = Counter()
    in_a_row, told_s = 0, [1.0]
    for _ in range(100):
        for band in (INTERACTIVE, STANDARD, BATCH):
            try:
                overload.admit(band)
            except Overloaded as error:
                told_s.append(error.retry_after_s or 0)
                refused[band] += 1
                in_a_row = in_a_row + 1 if band == STANDARD else in_a_row
            else:
                in_a_row = 0 if band == STANDARD else in_a_row
            assert in_a_row <= 1
    assert min(told_s) >= 1
    assert refused == {STANDARD: 25, BATCH: 100}
    assert sample(telemetry, "headwater_gateway_shed_requests_total", band="batch") == 100
    assert sample(telemetry, "headwater_gateway_shed_level") == 1.25


async def test_memory_over_nine_tenths_of_its_bound_sheds_and_under_eight_it_ends(telemetry: Telemetry) -> None:
    used = 95 * MIB
    overload = Overload(lag_max_s=60, memory_bytes_max=100 * MIB, telemetry=telemetry, resident_bytes=lambda: used)
    watching = asyncio.ensure_future(overload.watch())
    async with asyncio.timeout(5):
        while not overload.level:
            await asyncio.sleep(0)
        assert overload.level >= 1, "all of batch, at once"
        used = 70 * MIB
        while overload.level:
            await asyncio.sleep(0)
    watching.cancel()


async def test_memory_at_its_bound_refuses_everything(telemetry: Telemetry) -> None:
    overload = Overload(lag_max_s=60, memory_bytes_max=100 * MIB, telemetry=telemetry, resident_bytes=lambda: 100 * MIB)
    watching = asyncio.ensure_future(overload.watch())
    async with asyncio.timeout(5):
        while not overload.level:
            await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(Overloaded):
        overload.admit(INTERACTIVE)


async def test_what_names_a_tier_or_is_not_all_there_is_read_before_it_is_refused(telemetry: Telemetry) -> None:
    overload = Overload(lag_max_s=1, memory_bytes_max=None, telemetry=telemetry)
    overload.level = 2.0
    path = b"/v1/chat/completions"
    assert isinstance(overload.refuse_early(path, b'\r\n\r\n{"model":"m"}'), Overloaded)
    assert overload.refuse_early(path, b'\r\n\r\n{"service_tier":"priority"}') is False
    assert overload.refuse_early(path, b'\r\n\r\n{"model":') is False
    assert overload.refuse_early(b"/v1/other", b"\r\n\r\n{}") is False
    overload.level = 1.5
    told = [overload.refuse_early(path, b"{}") for _ in range(4)]
    assert sum(one is True for one in told) == 2, "who was admitted is not asked again"
    overload.level = LEVEL_MAX
    assert isinstance(overload.refuse_early(path, b'{"service_tier":"priority"}'), Overloaded)
    assert sample(telemetry, "headwater_gateway_refusals_total", code="overloaded") == 4


async def test_a_loop_that_stands_still_is_seen_in_the_histogram_with_all_samples_it_missed(
    telemetry: Telemetry,
) -> None:
    overload = Overload(lag_max_s=0.02, memory_bytes_max=None, telemetry=telemetry)
    watching = asyncio.ensure_future(overload.watch())
    async with asyncio.timeout(5):
        await asyncio.sleep(SAMPLE_S * 2)
        before = sample(telemetry, "headwater_gateway_event_loop_lag_seconds_count")
        time.sleep(0.5)  # noqa: ASYNC251 the very thing that is looked for
        while sample(telemetry, "headwater_gateway_event_loop_lag_seconds_count") < before + 8:
            await asyncio.sleep(0)
        while not overload.level:
            await asyncio.sleep(0)
    assert overload.lag_s > 0.02
    watching.cancel()


async def test_a_healthy_process_sheds_nothing(telemetry: Telemetry) -> None:
    overload = Overload(lag_max_s=60, memory_bytes_max=None, telemetry=telemetry)
    watching = asyncio.ensure_future(overload.watch())
    async with asyncio.timeout(5):
        while sample(telemetry, "headwater_gateway_event_loop_lag_seconds_count") < 12:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert overload.level == 0.0


def test_the_derived_bound_is_within_what_there_is() -> None:
    limit = vitals.memory_limit_bytes()
    assert 0 < vitals.derived_memory_bytes_max() <= limit
    used = vitals.resident_bytes()
    assert used is not None
    assert MIB < used < limit
    vitals.give_memory_back()


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] // 2, before[1]))
        assert vitals.raise_descriptor_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
