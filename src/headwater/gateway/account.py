"""What a key can see of itself: the models it may call (`/v1/models`) and what it has used (`/v1/usage`)."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from headwater.clock import Clock
from headwater.dialects.openai_models import ModelObject, model_body, models_body
from headwater.errors import InvalidRequest, NotFound, UnsupportedField
from headwater.gateway.cashier import Cashier
from headwater.gateway.http import Answer, Scope
from headwater.gateway.routing import ModelDirectory, Target
from headwater.gateway.weights import Weights
from headwater.ledger.caps import Counter
from headwater.ledger.hours import UsageSums, read_usage
from headwater.ledger.receipt import Receipt, for_caller, read_receipt
from headwater.ledger.store import is_request_of, open_reader
from headwater.money import format_nanos
from headwater.request import Principal
from headwater.scheduling.shares import WINDOW_S

DAYS_DEFAULT = 30
OWNER = "headwater"
_FIRST_END = datetime(1970, 1, 1, tzinfo=UTC)
"""Nothing is older; a date's own arithmetic ends at year 1."""


class _ModelUsageWire(msgspec.Struct):
    model: str
    requests_count: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost: str
    unpriced_requests_count: int


class _BudgetWire(msgspec.Struct):
    scope: str
    period: str
    limit: str
    spent: str
    held: str
    remaining: str
    resets_at: str | None


class _PoolShareWire(msgspec.Struct):
    pool: str
    tokens: int
    share: float | None


class _FairnessWire(msgspec.Struct):
    window_s: float
    weight: int
    pools: list[_PoolShareWire]


class _UsageWire(msgspec.Struct):
    object: str
    key_id: str
    project_id: str
    currency: str
    start: str
    end: str
    requests_count: int
    cost: str
    credit: str | None
    budgets: list[_BudgetWire]
    fairness: _FairnessWire
    data: list[_ModelUsageWire]


class Account:
    """Handlers of the endpoints that need a key."""

    def __init__(
        self,
        *,
        models: ModelDirectory,
        database: Path,
        cashier: Cashier,
        weights: Weights,
        currency: str,
        clock: Clock,
    ) -> None:
        self._weights = weights
        self._cashier = cashier
        self._models = models
        self._database = database
        self._currency = currency
        self._clock = clock

    async def list_models(self, _scope: Scope, principal: Principal | None) -> Answer:
        """The models this key may call."""
        assert principal is not None
        return Answer(models_body([_model_object(target) for target in self._models.visible(principal)]))

    async def get_model(self, scope: Scope, principal: Principal | None) -> Answer:
        """One model, or 404 as for one that doesn't exist."""
        assert principal is not None
        return Answer(model_body(_model_object(self._models.resolve(scope["path_params"]["model"], principal))))

    async def get_usage(self, scope: Scope, principal: Principal | None) -> Answer:
        """Sums by model of this key's records in [start, end), by default the last 30 days, and what it may still spend."""
        assert principal is not None
        start, end = self._span(scope["query_string"])
        rows = await asyncio.to_thread(self._read, principal.key_id, start, end)
        credit_nanos = self._cashier.credit_nanos(principal.organization_id)
        wire = _UsageWire(
            object="usage",
            key_id=principal.key_id,
            project_id=principal.project_id,
            currency=self._cashier.book.currency(principal.organization_id) or self._currency,
            start=start.isoformat(),
            end=end.isoformat(),
            requests_count=sum(row.requests_count for row in rows),
            cost=format_nanos(sum(row.cost_nanos for row in rows)),
            credit=None if credit_nanos is None else format_nanos(credit_nanos),
            budgets=[_budget_wire(counter) for counter in await self._cashier.caps_of(principal)],
            fairness=self._fairness(principal),
            data=[_usage_wire(row) for row in rows],
        )
        return Answer(msgspec.json.encode(wire))

    async def get_receipt(self, scope: Scope, principal: Principal | None) -> Answer:
        """The receipt of one request of this key's project; 404 for any other, as for one that doesn't exist."""
        assert principal is not None
        request_id = scope["path_params"]["request_id"]
        receipt = await asyncio.to_thread(self._read_receipt, request_id, principal.project_id)
        if receipt is None:
            raise NotFound(f"There is no request {request_id[:100]!r} of this key's project.")
        return Answer(msgspec.json.encode(for_caller(receipt)))

    def _fairness(self, principal: Principal) -> _FairnessWire:
        """What the caller's organization was served of late by each pool it can call, as a part of all that was served."""
        pools = {target.pool.name: target.pool for target in self._models.visible(principal)}
        shares: list[_PoolShareWire] = []
        for name, pool in sorted(pools.items()):
            served = pool.shares()
            own, everybody = served.get(principal.organization_id, 0), sum(served.values())
            shares.append(_PoolShareWire(name, own, round(own / everybody, 4) if everybody else None))
        return _FairnessWire(WINDOW_S, self._weights.organization(principal.organization_id), shares)

    def _read_receipt(self, request_id: str, project_id: str) -> Receipt | None:
        with contextlib.closing(open_reader(self._database)) as connection:
            if not is_request_of(connection, request_id, project_id):
                return None  # found out in one look, whether the request is somebody else's or nobody's
            return read_receipt(connection, request_id)

    def _read(self, key_id: str, start: datetime, end: datetime) -> list[UsageSums]:
        with contextlib.closing(open_reader(self._database)) as connection:
            return read_usage(
                connection, "model", start_ms=_milliseconds(start), end_ms=_milliseconds(end), key_id=key_id
            )

    def _span(self, query: bytes) -> tuple[datetime, datetime]:
        given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        if unknown := sorted(given.keys() - {"start", "end"}):
            raise UnsupportedField(f"Unknown query parameter {unknown[0]!r}; known: start, end.", param=unknown[0])
        now = datetime.fromtimestamp(self._clock.now_s(), UTC)
        end = _moment(given, "end") or now + timedelta(seconds=1)
        start = _moment(given, "start") or max(end, _FIRST_END) - timedelta(days=DAYS_DEFAULT)
        if start >= end:
            raise InvalidRequest(f"start ({start.isoformat()}) must be before end ({end.isoformat()}).", param="start")
        return start, end


def _moment(given: dict[str, Any], name: str) -> datetime | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{name} must be a date or time in ISO 8601, such as 2026-11-01; given: {text[:50]!r}.", param=name
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _model_object(target: Target) -> ModelObject:
    return ModelObject(
        id=target.name, created=target.created_at_s, owned_by=OWNER if target.is_own else target.name.partition("/")[0]
    )


def _budget_wire(counter: Counter) -> _BudgetWire:
    terms, ends_ms = counter.terms, counter.period.ends_ms
    return _BudgetWire(
        scope=terms.scope,
        period=counter.period.key,
        limit=format_nanos(terms.limit_nanos),
        spent=format_nanos(counter.spent_nanos),
        held=format_nanos(counter.held_nanos),
        remaining=format_nanos(counter.available_nanos),
        resets_at=None if ends_ms is None else datetime.fromtimestamp(ends_ms / 1000, UTC).isoformat(),
    )


def _usage_wire(row: UsageSums) -> _ModelUsageWire:
    return _ModelUsageWire(
        model=str(row.group),
        requests_count=row.requests_count,
        input_tokens=row.usage.input,
        cached_input_tokens=row.usage.cache_read,
        output_tokens=row.usage.output,
        reasoning_tokens=row.usage.reasoning,
        cost=format_nanos(row.cost_nanos),
        unpriced_requests_count=row.unpriced_count,
    )
