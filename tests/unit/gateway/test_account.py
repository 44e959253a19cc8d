import json
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import InvalidRequest, ModelNotFound, UnsupportedField
from headwater.gateway.account import Account
from headwater.gateway.pool import Ask
from headwater.gateway.routing import ModelDirectory
from headwater.gateway.weights import Weights
from headwater.ledger.batch import settlement_writes
from headwater.ledger.writer import LedgerWriter
from headwater.request import Principal
from tests.unit.gateway.chats import target
from tests.unit.gateway.conftest import WAIT_S
from tests.unit.gateway.tills import make_cashier
from tests.unit.ledger.settlements import settlement

NOW_S = 1_795_392_000.0  # 2026-11-23T00:00:00Z
DAY_MS = 86_400_000
PRINCIPAL = Principal(
    organization_id="org_1", project_id="prj_1", key_id="key_1", allowed_models=frozenset({"m", "acme/large"})
)


class Clock:
    def now_s(self) -> float:
        return NOW_S

    def monotonic_s(self) -> float:
        return NOW_S


@pytest.fixture
async def account(database: Path, writer: LedgerWriter) -> Account:
    writer.start()
    models = ModelDirectory({name: target(name, is_own="/" not in name) for name in ("m", "acme/large", "secret")})
    cashier = make_cashier(database, writer, Clock())
    return Account(
        models=models, database=database, cashier=cashier, weights=Weights({"org_1": 3}), currency="USD", clock=Clock()
    )


async def usage(account: Account, query: str = "") -> Any:
    return json.loads((await account.get_usage({"query_string": query.encode()}, PRINCIPAL)).body)


async def test_a_key_sees_the_models_it_can_call(account: Account) -> None:
    body = json.loads((await account.list_models({}, PRINCIPAL)).body)
    assert [(model["id"], model["owned_by"]) for model in body["data"]] == [("acme/large", "acme"), ("m", "headwater")]
    one = json.loads((await account.get_model({"path_params": {"model": "acme/large"}}, PRINCIPAL)).body)
    assert one == body["data"][0]
    with pytest.raises(ModelNotFound):
        await account.get_model({"path_params": {"model": "none"}}, PRINCIPAL)


async def test_use_is_summed_over_the_last_30_days_unless_told_otherwise(
    account: Account, writer: LedgerWriter
) -> None:
    now_ms = int(NOW_S * 1000)
    for received_at_ms, cost in ((now_ms, 10), (now_ms - 29 * DAY_MS, 20), (now_ms - 31 * DAY_MS, 40)):
        one = settlement(received_at_ms=received_at_ms, cost_nanos=cost)
        writer.submit(settlement_writes(one)).result(WAIT_S)
    body = await usage(account)
    assert (body["requests_count"], body["cost"], body["currency"]) == (2, "0.00000003", "USD")
    assert body["data"] == [
        {
            "model": "m",
            "requests_count": 2,
            "input_tokens": 30,
            "cached_input_tokens": 10,
            "output_tokens": 14,
            "reasoning_tokens": 4,
            "cost": "0.00000003",
            "unpriced_requests_count": 0,
        }
    ]
    assert (await usage(account, "start=2026-10-01"))["requests_count"] == 3
    assert (await usage(account, "start=2026-10-01&end=2026-10-30"))["requests_count"] == 2
    assert (await usage(account, "end=2026-10-25T00:00:00%2B00:00"))["requests_count"] == 1


@pytest.mark.parametrize(
    "query",
    [
        *("start=yesterday", "end=", "start=2026-11-24", "start=2026-11-02&end=2026-11-01", "end=0001-01-01"),
        *("start=0001-01-01&end=0001-01-01", "end=0001-01-02", "start=9999-12-31T23:59:59-23:59", "start=%00"),
    ],
)
async def test_an_impossible_span_is_the_callers_mistake(account: Account, query: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await usage(account, query)
    assert refused.value.param in ("start", "end")


@pytest.mark.parametrize("query", ["start=0001-01-01", "end=9999-12-31", "start=0001-01-01T00:00:00%2B23:59"])
async def test_the_ends_of_time_are_no_trouble(account: Account, query: str) -> None:
    assert (await usage(account, query))["requests_count"] == 0


async def test_an_unknown_parameter_is_named(account: Account) -> None:
    with pytest.raises(UnsupportedField, match="'group_by'"):
        await usage(account, "group_by=model")


async def test_the_share_of_the_callers_organization_is_shown_and_nobody_elses(account: Account) -> None:
    models = account._models
    pool = models.resolve("m", PRINCIPAL).pool
    for organization_id, tokens in (("org_1", 25), ("org_2", 75)):
        lease = await pool.lease(Ask(organization_id, "key_1"))
        pool.release(lease, input_tokens=5, output_tokens=tokens - 5)
    assert (await usage(account))["fairness"] == {
        "window_s": 60.0,
        "weight": 3,
        "pools": [
            {"pool": "acme/large", "tokens": 0, "share": None},
            {"pool": "m", "tokens": 25, "share": 0.25},
        ],
    }
