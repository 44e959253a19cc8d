"""The nouns of administration as a person types them, on the files of a platform that doesn't run."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headwater.cli.administering import parse_end, parse_moment_ms, parse_span_s
from headwater.errors import OperatorError
from tests.unit.cli.conftest import Run

PRICE_MAP = {
    "large": {
        "litellm_provider": "acme",
        "mode": "chat",
        "input_cost_per_token": 1e-06,
        "cache_read_input_token_cost": 1e-07,
        "output_cost_per_token": 3e-06,
    },
    "small": {"mode": "chat", "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06},
    "broken": {"mode": "chat", "input_cost_per_token": -1, "output_cost_per_token": 1e-06},
}


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("12h", 43_200), ("90d", 7_776_000), ("4w", 2_419_200)]
)
def test_a_span_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_span_s(text) == seconds
    assert parse_end(text) == (seconds, None)


@pytest.mark.parametrize("text", ["", "90", "d", "1y", "-1d", "1.5d", "9999999d", "٣d", "tomorrow"])
def test_what_is_no_span_is_refused_with_examples(text: str) -> None:
    with pytest.raises(OperatorError, match="not a span of time") as refused:
        parse_end(text)
    assert "90d" in refused.value.now


def test_an_end_may_be_a_date_or_nothing() -> None:
    new_year_ms = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp() * 1000)
    assert parse_end("2027-01-01") == (None, new_year_ms)
    assert parse_end("2027-01-01T08:00+08:00") == (None, new_year_ms)
    assert parse_end(None) == (None, None)
    with pytest.raises(OperatorError, match="not a date"):
        parse_end("2027-13-01")
    with pytest.raises(OperatorError, match="--effective"):
        parse_moment_ms("soon", "--effective")


def test_organizations_projects_and_keys_from_beginning_to_end(run: Run) -> None:
    acme = run("organizations", "create", "acme", "--prepaid", "--currency", "EUR", "--json").json()
    assert (acme["name"], acme["state"], acme["is_prepaid"], acme["currency"]) == ("acme", "active", True, "EUR")
    assert (acme["balance"], acme["balance_nanos"], acme["credit"]) == ("0", 0, "0")
    run("organizations", "update", "acme", "--postpaid")
    assert run("organizations", "show", acme["id"], "--json").json()["is_prepaid"] is False
    run("organizations", "update", "acme", "--name", "Acme Inc.")
    assert [one["name"] for one in run("organizations", "list", "--json").json()] == ["default", "Acme Inc."]
    table = run("organizations", "list").out
    assert "Acme Inc." in table
    assert "after use" in table

    search = run("projects", "create", "search", "--organization", "Acme Inc.", "--no-storage", "--json").json()
    assert (search["organization_id"], search["is_storage_allowed"]) == (acme["id"], False)
    assert run("projects", "update", "search", "--storage", "--json").json()["is_storage_allowed"] is True
    assert run("projects", "update", "search", "--name", "find", "--json").json()["is_storage_allowed"] is True
    assert "find" in run("projects", "list").out
    assert len(run("projects", "list", "--organization", "Acme Inc.", "--json").json()) == 2
    assert "yes" in run("projects", "show", "find").out

    made = run("keys", "create", "--project", "find", "--name", "ci", "--model", "qwen", "--json").json()
    assert (made["project"], made["organization"], made["allowed_models"]) == ("find", "Acme Inc.", ["qwen"])
    ours = run("keys", "create", "--organization", "Acme Inc.", "--json").json()
    assert (ours["project"], ours["organization_id"]) == ("default", acme["id"])
    assert [one["id"] for one in run("keys", "list", "--project", "find", "--json").json()] == [made["id"]]
    changed = run("keys", "update", "ci", "--all-models", "--expires", "90d", "--name", "cd", "--json").json()
    assert (changed["id"], changed["allowed_models"], changed["name"]) == (made["id"], None, "cd")
    left_s = datetime.fromisoformat(changed["expires_at"]).timestamp() - time.time()
    assert 89.9 < left_s / 86_400 < 90.1
    assert run("keys", "update", "cd", "--expires", "never", "--json").json()["expires_at"] is None
    dated = run("keys", "update", "cd", "--expires", "2100-01-01", "--model", "acme/large", "--json").json()
    assert (dated["expires_at"], dated["allowed_models"]) == ("2100-01-01T00:00:00+00:00", ["acme/large"])
    assert "acme/large" in run("keys", "list").out
    assert made["key"] not in run("keys", "show", "cd").out
    assert run("keys", "archive", "cd", "--json").json()["state"] == "revoked"
    assert "requests with it get 401" in run("keys", "revoke", made["id"]).out

    assert run("projects", "archive", "find", "--json").json()["state"] == "archived"
    assert run("organizations", "archive", "Acme Inc.", "--json").json()["state"] == "archived"
    assert run("keys", "show", ours["id"], "--json").json()["state"] == "revoked"


def test_budgets_from_beginning_to_end(run: Run) -> None:
    run("keys", "create", "--name", "ci")
    month = run(
        *("budgets", "create", "--limit", "25.5", "--per", "month", "--organization", "default"),
        *("--zone", "Asia/Shanghai", "--json"),
    ).json()
    assert (month["limit"], month["limit_nanos"], month["remaining"]) == ("25.5", 25_500_000_000, "25.5")
    assert (month["thresholds"], month["time_zone"], month["per"]) == ([80, 100], "Asia/Shanghai", "month")
    assert month["resets_at"].endswith("T16:00:00+00:00")
    tag = run(
        *("budgets", "create", "--limit", "1", "--per", "custom", "--days", "14", "--tag", "batch"),
        *("--organization", "default", "--threshold", "50", "--json"),
    ).json()
    assert (tag["scope"], tag["scope_id"], tag["per"], tag["thresholds"]) == ("tag", "batch", "14 days", [50])
    key = run("budgets", "create", "--limit", "1", "--per", "total", "--key", "ci", "--json").json()
    assert (key["caps"], key["resets_at"]) == ("key ci", None)
    listed = run("budgets", "list").out
    assert "organization default" in listed
    assert "tag batch" in listed
    changed = run(
        "budgets", "update", tag["id"], "--limit", "2", "--threshold", "90", "--threshold", "60", "--json"
    ).json()
    assert (changed["limit"], changed["thresholds"]) == ("2", [60, 90])
    assert "60, 90" in run("budgets", "show", tag["id"]).out
    assert run("budgets", "archive", tag["id"], "--json").json()["state"] == "archived"
    assert len(run("budgets", "list", "--json").json()) == 2
    assert len(run("budgets", "list", "--all", "--organization", "default", "--json").json()) == 3


def test_grants_from_beginning_to_end(run: Run) -> None:
    made = run(
        *("grants", "create", "--organization", "default", "--amount", "100", "--expires", "2100-01-01"),
        *("--note", "pilot", "--json"),
    ).json()
    assert (made["amount"], made["remaining_nanos"], made["state"]) == ("100", 100 * 10**9, "active")
    assert (made["expires_at"], made["note"]) == ("2100-01-01T00:00:00+00:00", "pilot")
    run("grants", "create", "--organization", "default", "--amount", "1", "--expires", "90d")
    assert run("grants", "update", made["id"], "--note", "trial", "--json").json()["note"] == "trial"
    assert "trial" in run("grants", "list").out
    assert len(run("grants", "list", "--organization", "default", "--json").json()) == 2
    adjusted = run(
        "grants", "adjust", "--organization", "default", "--amount", "-5", "--note", "sorry", "--json"
    ).json()
    assert (adjusted["amount"], adjusted["balance"]) == ("-5", "96")
    archived = run("grants", "archive", made["id"], "--json").json()
    assert (archived["state"], archived["remaining"]) == ("revoked", "0")
    assert "100" in run("grants", "show", made["id"]).out
    shown = run("organizations", "show", "default", "--json").json()
    assert (shown["balance"], shown["credit"]) == ("-4", "1")


def test_prices_from_beginning_to_end(run: Run) -> None:
    made = run(
        *("prices", "create", "qwen", "--input", "0.10", "--output", "0.30", "--cached-input", "0.01"),
        *("--batch-multiplier", "0.5", "--request", "7", "--tier", "above=200000, input=2.5, output=15", "--json"),
    ).json()
    assert (made["input"], made["cached_input"], made["cache_write"], made["reasoning"]) == (
        "0.1",
        "0.01",
        "0.1",
        "0.3",
    )
    assert (made["request"], made["multipliers"], made["state"]) == ("7", {"batch": "0.5"}, "in force")
    assert made["tiers"] == [
        {
            "above_input_tokens": 200_000,
            "input": "2.5",
            "cached_input": "2.5",
            "cache_write": "2.5",
            "cache_write_1h": "2.5",
            "output": "15",
            "reasoning": "15",
        }
    ]
    later = run("prices", "update", "qwen", "--output", "0.40", "--effective", "2100-01-01", "--json").json()
    assert (later["output"], later["cached_input"], later["state"]) == ("0.4", "0.01", "scheduled")
    run("prices", "create", "acme/large", "--cost", "--input", "1", "--output", "2")
    assert {(one["model"], one["kind"]) for one in run("prices", "list", "--json").json()} == {
        ("qwen", "price"),
        ("acme/large", "cost"),
    }
    assert "2100-01-01" not in run("prices", "list").out
    assert "2100-01-01" in run("prices", "list", "--all").out
    shown = run("prices", "show", "qwen").out
    assert "scheduled" in shown
    assert "above_input_tokens 200000, input 2.5" in shown
    assert len(run("prices", "show", "qwen", "--json").json()) == 2
    assert run("prices", "archive", "qwen", "--json").json()["state"] == "in force, withdrawn"
    assert [one["kind"] for one in run("prices", "list", "--json").json()] == ["cost"]
    assert run("prices", "archive", "acme/large", "--cost", "--json").json()["kind"] == "cost"


def test_prices_are_imported_from_a_price_map(run: Run) -> None:
    Path("map.json").write_text(json.dumps(PRICE_MAP))
    dry = run("prices", "import", "map.json", "--dry-run", "--json").json()
    assert [one["model"] for one in dry["prices"]] == ["acme/large"], "small belongs to the file"
    assert dry["prices"][0]["version"] is None
    assert [(one["model"], one["reason"]) for one in dry["skipped"]] == [
        ("acme/gone", "the map has no entry of that name")
    ]
    tables = run("prices", "import", "map.json", "--dry-run").out
    assert "Left out" in tables
    assert "no entry of that name" in tables
    assert run("prices", "list", "--json").json() == []
    done = run("prices", "import", "map.json", "--json").json()
    [price] = run("prices", "list", "--json").json()
    assert price["id"] == done["prices"][0]["version"]
    assert (price["input"], price["cached_input"], price["output"]) == ("1", "0.1", "3")
    run("prices", "import", "map.json", "--model", "acme/gone=large", "--model", "qwen=small", "--cost", status=1)
    run("prices", "import", "map.json", "--model", "acme/gone=large", "--cost")
    kinds = {(one["model"], one["kind"]) for one in run("prices", "list", "--json").json()}
    assert kinds == {("acme/large", "price"), ("acme/gone", "cost")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("organizations", "show", "acne"), "There are: default"),
        (("organizations", "archive", "default"), "default organization can't be archived"),
        (("organizations", "create", "default"), "already"),
        (("organizations", "create", "x", "--currency", "euro"), "not a currency"),
        (("projects", "show", "nothing"), "default (of default)"),
        (("projects", "archive", "default"), "can't be archived"),
        (("keys", "create", "--project", "nothing"), "no project 'nothing'"),
        (("keys", "create", "--model", "gpt"), "no model 'gpt'"),
        (("keys", "create", "--expires", "tomorrow"), "not a span"),
        (("keys", "revoke", "key_none"), "keys list"),
        (("budgets", "create", "--limit", "x", "--per", "day", "--organization", "default"), "A limit can't be 'x'"),
        (("budgets", "create", "--limit", "1", "--per", "day"), "What the budget caps isn't said"),
        (("budgets", "create", "--limit", "1", "--per", "custom", "--organization", "default"), "--days"),
        (
            ("budgets", "create", "--limit", "1", "--per", "day", "--organization", "default", "--zone", "Berlin"),
            "no time zone 'Berlin'",
        ),
        (("budgets", "show", "bud_none"), "There are: none"),
        (("grants", "create", "--organization", "default", "--amount", "0"), "gives nothing"),
        (("grants", "adjust", "--organization", "default", "--amount", "x"), "can't be 'x'"),
        (("grants", "archive", "grt_none"), "There are: none"),
        (("prices", "create", "gpt", "--input", "1", "--output", "1"), "no model 'gpt' to price"),
        (("prices", "create", "qwen", "--input", "1"), "needs --output"),
        (("prices", "create", "acme/small", "--input", "1", "--output", "1"), "belongs to the configuration file"),
        (("prices", "update", "qwen", "--input", "1"), "has no price"),
        (("prices", "create", "qwen", "--input", "1", "--output", "1", "--effective", "2020-01-01"), "priced again"),
        (("prices", "create", "qwen", "--input", "1", "--output", "1", "--tier", "x"), "above=200000"),
        (("prices", "create", "qwen", "--input", "1", "--output", "1", "--tier", "above=1,colour=2"), "can't be read"),
        (("prices", "create", "qwen", "--input", "1", "--output", "1", "--tier", "above=1"), "can't be read"),
        (("prices", "import", "nowhere.json"), "can't be read"),
        (("prices", "import", "headwater.toml"), "holds no prices"),
        (("prices", "import", "headwater.toml", "--model", "qwen"), "OURS=THEIRS"),
    ],
)
def test_an_impossible_wish_fails_in_words(run: Run, arguments: tuple[str, ...], words: str) -> None:
    ran = run(*arguments, status=1)
    assert ran.out == ""
    assert words in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("budgets", "create", "--limit", "1", "--per", "year", "--organization", "default"),
        ("budgets", "create", "--per", "day", "--organization", "default"),
        ("grants", "create", "--amount", "1"),
        ("organizations", "create"),
        ("keys", "update", "x", "--model", "qwen", "--all-models"),
    ],
)
def test_a_command_that_can_not_be_read_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments, status=2).out == ""


def test_nothing_is_imported_where_nothing_can_be(run: Run) -> None:
    Path("map.json").write_text(json.dumps({"other": PRICE_MAP["small"]}))
    assert "no entry of that name" in run("prices", "import", "map.json", status=1).err
    Path("headwater.toml").write_text('[[deployments]]\nname = "qwen"\nmodel = "qwen2.5-coder-0.5b-instruct"\n')
    assert "No upstream's model is left" in run("prices", "import", "map.json", status=1).err
