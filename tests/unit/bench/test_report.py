"""What a benchmark says of its figures."""

from bench.report import AGAINST_MIN, Sample, against_goals, paired_ratio


def rounds(subject: str, scenario: str, metric: str, *values: float) -> list[Sample]:
    return [Sample(subject, scenario, round_, metric, value) for round_, value in enumerate(values)]


def test_a_ratio_is_taken_within_each_round_since_machines_drift() -> None:
    before = rounds("headwater-before", "nonstream-c16", "req_per_s", 1000, 2000, 4000)
    ours = rounds("headwater", "nonstream-c16", "req_per_s", 990, 1980, 4400)

    assert paired_ratio([*before, *ours], "nonstream-c16", "req_per_s") == 0.99


def test_nothing_measured_is_no_goal_met() -> None:
    assert paired_ratio([], "nonstream-c16", "req_per_s") is None
    assert {goal.is_met for goal in against_goals([]) if "of before" in goal.text} == {None}


def test_a_rate_may_fall_and_cpu_may_rise_by_a_twentieth() -> None:
    def is_met(metric: str, ours: float) -> bool | None:
        samples = [
            *rounds("headwater-before", "nonstream-c16", metric, 100),
            *rounds("headwater", "nonstream-c16", metric, ours),
        ]
        return next(goal.is_met for goal in against_goals(samples) if goal.is_met is not None)

    assert is_met("req_per_s", 100 * AGAINST_MIN) is True
    assert is_met("req_per_s", 100 * AGAINST_MIN - 0.1) is False
    assert is_met("cpu_us_per_request", 105) is True
    assert is_met("cpu_us_per_request", 106) is False


def test_a_wrong_answer_of_either_is_a_goal_missed() -> None:
    goals = against_goals(rounds("headwater-before", "nonstream-c16", "error_count", 1))

    assert [goal.is_met for goal in goals if "wrong answer" in goal.text] == [False]
