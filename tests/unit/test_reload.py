"""What of a changed configuration a running platform can take, and what needs a new start."""

from dataclasses import fields, replace
from typing import Any

import pytest

from headwater.reload import GATEWAY_LIVE, LISTS_LIVE, TABLES_LIVE, compare
from headwater.settings.model import (
    BillingSettings,
    DeploymentSettings,
    GatewaySettings,
    LogSettings,
    ModelStoreSettings,
    PriceSettings,
    Settings,
    StoreSettings,
    UpstreamSettings,
    WebhookSettings,
)
from headwater.settings.secret import Secret

OLD = Settings(
    deployments=(DeploymentSettings(name="a", model="m"), DeploymentSettings(name="b", model="m")),
    upstreams=(UpstreamSettings(name="up", base_url="http://up/v1", models=("x",), api_key=Secret("one")),),
    prices=(PriceSettings(model="a", input="1", output="2"),),
)


def test_nothing_changed_is_nothing_to_do() -> None:
    assert compare(OLD, replace(OLD)) == (OLD, [], [])


def test_the_order_of_tables_means_nothing() -> None:
    again = replace(OLD, deployments=OLD.deployments[::-1])
    assert compare(OLD, again) == (again, [], [])


def test_tables_that_come_go_and_change_are_named_with_their_keys() -> None:
    new = replace(
        OLD,
        deployments=(replace(OLD.deployments[0], slots=9, replicas=2), DeploymentSettings(name="c", model="m")),
        prices=(),
    )
    assert compare(OLD, new) == (
        new,
        [
            'deployments "c" added',
            'deployments "b" removed',
            'deployments "a" changed: replicas, slots',
            'prices "a" removed',
        ],
        [],
    )


def test_a_changed_secret_is_named_and_not_shown() -> None:
    new = replace(OLD, upstreams=(replace(OLD.upstreams[0], api_key=Secret("another")),))
    difference = compare(OLD, new)
    assert difference.changed == ['upstreams "up" changed: api_key']
    assert difference.settings.upstreams[0].api_key == Secret("another")
    assert "another" not in str(difference)


@pytest.mark.parametrize(
    ("table", "value", "kept"),
    [
        ("gateway", GatewaySettings(listen="127.0.0.1:9"), ["gateway.listen"]),
        (
            "store",
            StoreSettings(url="sqlite:///x/y.db", archive_after_days=3),
            ["store.url", "store.archive_after_days"],
        ),
        ("log", LogSettings(level="debug"), ["log.level"]),
        ("billing", BillingSettings(currency="EUR"), ["billing.currency"]),
        ("webhooks", (WebhookSettings(url="http://x", secret=Secret("s")),), ["webhooks"]),
    ],
)
def test_what_needs_a_new_start_stays_and_is_named(table: str, value: Any, kept: list[str]) -> None:
    changes: dict[str, Any] = {table: value}
    assert compare(OLD, replace(OLD, **changes)) == (OLD, [], kept)


def test_a_table_of_both_is_taken_in_part() -> None:
    both = replace(OLD, gateway=GatewaySettings(listen="127.0.0.1:9", idle_timeout_s=1.0))
    difference = compare(OLD, both)
    assert difference.settings.gateway == GatewaySettings(idle_timeout_s=1.0)
    assert (difference.changed, difference.kept) == (["gateway.idle_timeout_s"], ["gateway.listen"])


def test_where_models_are_kept_can_change() -> None:
    new = replace(OLD, models=ModelStoreSettings(directory="./elsewhere"))
    assert compare(OLD, new) == (new, ["models.directory"], [])


def test_what_is_said_to_change_exists() -> None:
    assert {one.name for one in fields(GatewaySettings)} >= GATEWAY_LIVE
    assert {one.name for one in fields(Settings)} >= {*LISTS_LIVE, *TABLES_LIVE}
