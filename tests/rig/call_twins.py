"""Broken builds that call upstreams wrongly: what `gate/faults.py` must catch. `twins.py` runs them."""

from collections.abc import Callable
from typing import Any


def breaker_never_opens() -> None:
    """Failures are counted, and nothing follows from it."""
    from headwater.scheduling.breaker import Breaker

    Breaker._open = lambda *_arguments: None  # type: ignore[method-assign]


def fails_over_after_content() -> None:
    """Whatever has been delivered, the next target is asked: the caller reads the beginning twice."""
    from headwater.gateway import calling

    decide: Callable[..., bool] = calling.__dict__["may_go_elsewhere"]

    def decide_blindly(error: Any, **_named: Any) -> bool:
        return decide(error, has_content=False)

    calling.__dict__["may_go_elsewhere"] = decide_blindly


def retries_without_budget() -> None:
    """Each call that fails is made again, however many do."""
    from headwater.scheduling.retries import RetryBudget

    RetryBudget.take = lambda self: True  # type: ignore[method-assign]  # noqa: ARG005


TWINS: dict[str, Callable[[], None]] = {
    "breaker_never_opens": breaker_never_opens,
    "fails_over_after_content": fails_over_after_content,
    "retries_without_budget": retries_without_budget,
}
