import pytest

from headwater.scheduling.bands import Band
from headwater.scheduling.estimate import asks_ahead, running_mean, wait_s


def test_a_tenant_waits_for_its_own_and_for_the_others_part() -> None:
    def ahead(own: int, **changes: float) -> float:
        facts = {"band_count": 50, "higher_count": 0, "weight": 1, "weights_sum": 5, **changes}
        return asks_ahead(Band.STANDARD, own_count=own, **facts)  # type: ignore[arg-type]

    assert ahead(0) == 4
    assert ahead(2) == 2 + 3 * 4
    assert ahead(0, weight=4) == 0.25
    assert ahead(0, cost_ratio=3.0) == 12
    assert ahead(0, band_count=2) == 2  # the others don't ask for more
    assert ahead(0, higher_count=7) == 11
    assert ahead(0, higher_count=1000) == 50  # a tenth is the band's in any case
    assert asks_ahead(Band.INTERACTIVE, own_count=9, band_count=9, higher_count=0, weight=1, weights_sum=1) == 9


def test_places_come_free_one_after_another() -> None:
    assert wait_s(0, places_count=4, service_mean_s=8.0) == 2.0
    assert wait_s(9, places_count=4, service_mean_s=8.0) == 20.0
    assert wait_s(9, places_count=0, service_mean_s=8.0) == 80.0
    assert wait_s(9, places_count=4, service_mean_s=None) == 0.0


def test_the_first_value_is_the_mean() -> None:
    assert running_mean(None, 7.0) == 7.0
    assert running_mean(10.0, 20.0) == pytest.approx(12.0)
