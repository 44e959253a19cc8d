"""Broken builds that don't bear load: what the rigs about overload, soaking and cancelling must catch. `twins.py` runs them."""

from collections.abc import Callable
from typing import Any


def nobody_is_refused() -> None:
    """Queues have no bound, and nothing is shed."""
    from headwater.gateway import chat, life
    from headwater.gateway.overload import Overload
    from headwater.gateway.pool import Pool

    def check_nothing(*_arguments: Any, **_named: Any) -> None:
        """Let everybody in."""

    Pool.check = check_nothing  # type: ignore[method-assign]
    Overload.admit = check_nothing  # type: ignore[method-assign]
    chat.ChatCompletions._require_room = check_nothing  # type: ignore[method-assign]
    context: Callable[..., Any] = life.LifeContext.__new__

    def unbounded(*arguments: Any, **named: Any) -> Any:
        return context(*arguments, **named | {"concurrent_max": 10**9})

    life.LifeContext.__new__ = unbounded  # type: ignore[method-assign]


def requests_are_kept() -> None:
    """Every request that was ever served is kept, in case somebody asks."""
    from headwater.gateway.life import Life

    begin: Callable[..., None] = Life.__init__
    kept: list[Any] = []

    def keep(self: Life, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        kept.append((self, [0] * 500))

    Life.__init__ = keep  # type: ignore[method-assign]


def calls_stay_open() -> None:
    """A call to an engine isn't closed when nobody wants its answer any more: the engine goes on to the end."""
    from headwater.gateway.http_client import Response

    kept: list[Response] = []

    def keep_open(self: Response) -> None:
        kept.append(self)

    Response.close = keep_open  # type: ignore[method-assign]


TWINS: dict[str, Callable[[], None]] = {
    "nobody_is_refused": nobody_is_refused,
    "requests_are_kept": requests_are_kept,
    "calls_stay_open": calls_stay_open,
}
