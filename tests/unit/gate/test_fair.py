"""The simulated part of `make gate-fair`, short: every goal met, every broken order caught."""

import pytest

from gate import fair_simulated
from gate.fair_goals import Goal, at_most, rows, sentence, told
from gate.fair_world import jain, percentile
from gate.rows import missed
from headwater.scheduling.fair_queue import FairQueue
from tests.rig.fair_queues import FirstCome, RoundRobin

MINUTES = 1


def unmet(goals: list[Goal]) -> list[str]:
    return [str(goal) for goal in goals if not goal.is_met]


def test_equal_tenants_are_served_alike_and_broken_orders_are_caught() -> None:
    assert not unmet(fair_simulated.equal_tenants(FairQueue, MINUTES))
    assert not unmet(fair_simulated.equal_tenants(FirstCome, MINUTES, twin="first_come"))
    assert not unmet(fair_simulated.equal_tenants(RoundRobin, MINUTES, twin="round_robin"))


def test_shares_are_as_the_weights() -> None:
    assert not unmet(fair_simulated.weights(3 * MINUTES))


def test_a_quiet_tenant_hardly_waits_beside_a_flood() -> None:
    assert not unmet(fair_simulated.quiet_tenant(FairQueue, 3 * MINUTES))
    assert not unmet(fair_simulated.quiet_tenant(FirstCome, 3 * MINUTES, twin="first_come"))


def test_warm_prefixes_are_used_without_unfairness() -> None:
    assert not unmet(fair_simulated.warm_prefixes(3 * MINUTES))


def test_batch_keeps_its_floor() -> None:
    assert not unmet(fair_simulated.batch_floor(3 * MINUTES))


def test_a_decision_is_quick_with_a_thousand_tenants() -> None:
    goals = fair_simulated.decisions(500)
    assert all(goal.value < 5 * goal.limit for goal in goals), "not even near; the machine may be busy"


def test_goals_are_judged_and_told() -> None:
    good, bad = Goal("a", 1.0, 0.9), at_most("b", 3.0, 2.0, " s")
    caught, uncaught = Goal("a", 0.5, 0.9, twin="broken"), Goal("a", 0.95, 0.9, twin="broken")
    assert [goal.is_met for goal in (good, bad, caught, uncaught)] == [True, False, True, False]
    assert sentence([good, caught], 3.2) == (
        "fair: every goal met: a 1 (must be ≥ 0.9); 1 of 1 broken orders caught; 3 s."
    )
    assert "MISSED b 3 s (must be ≤ 2 s)" in sentence([good, bad, caught], 3.2)
    assert sentence([good, caught, told("n", 24.0)], 3.2).startswith("fair: every goal met: a 1 (must be ≥ 0.9), n 24;")
    assert missed(rows("fair", [good, caught])) == []
    assert len(missed(rows("fair", [good, bad, uncaught]))) == 2


@pytest.mark.parametrize(("values", "index"), [([1, 1, 1], 1.0), ([1, 0], 0.5), ([3, 1], 0.8), ([0, 0], 0.0)])
def test_jains_index(values: list[float], index: float) -> None:
    assert jain(values) == pytest.approx(index)
    assert percentile([], 0.5) == 0.0
