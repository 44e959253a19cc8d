"""Exports of many makers are read alike, and what can't be read is named by its line."""

import json
from datetime import date

import pytest

from headwater.errors import OperatorError
from headwater.ledger.usage_export import Export, ExportRow, parse_export

DAY = date(2026, 11, 6)
CSV = """\
date,model,requests,prompt_tokens,cached_tokens,completion_tokens,cost
2026-11-06,large,2,100,40,10,0.0000000125
2026-11-06,large,1,50,0,5,0.0000000005
2026-11-07,small,1,7,0,1,1.5
"""
ROWS = [
    ExportRow(DAY, "large", {"requests": 3, "input_tokens": 150, "cached_tokens": 40, "output_tokens": 15, "cost": 13}),
    ExportRow(
        date(2026, 11, 7),
        "small",
        {"requests": 1, "input_tokens": 7, "cached_tokens": 0, "output_tokens": 1, "cost": 1_500_000_000},
    ),
]


def test_csv_is_summed_by_day_and_model_and_money_is_rounded_once() -> None:
    assert parse_export(CSV) == Export(ROWS, ("requests", "input_tokens", "cached_tokens", "output_tokens", "cost"))


@pytest.mark.parametrize(
    "text",
    [
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        "\ufeff" + CSV.replace("\n", "\r\n"),
        CSV + "\n,,,,,,\n",
        CSV.replace("date,model,requests,prompt_tokens", "Start Time,Model,Num Model Requests,Input Tokens"),
        CSV.replace("2026-11-06", "2026-11-06T23:59:59Z"),
        CSV.replace("2026-11-06", "2026-11-07T01:30:00+02:00"),
        CSV.replace("2026-11-06", "1793923200"),
        CSV.replace("2026-11-06", "1793923200000"),
        CSV.replace(",1.5", ",$1.5"),
        CSV.replace("cost", "Amount (USD)").replace("Amount (USD)", "amount_usd"),
    ],
    ids=[
        "semicolon",
        "tab",
        "windows",
        "empty line",
        "other names",
        "utc",
        "zone",
        "seconds",
        "ms",
        "dollar",
        "amount",
    ],
)
def test_csv_of_other_makers_reads_alike(text: str) -> None:
    assert parse_export(text).rows == ROWS


def test_only_figures_of_the_export_are_compared() -> None:
    export = parse_export("day,model,output_tokens\n2026-11-06,large,4\n")
    assert export == Export([ExportRow(DAY, "large", {"output_tokens": 4})], ("output_tokens",))


def test_columns_can_be_named() -> None:
    text = "when,what,spend\n2026-11-06,large,0.5\n"
    export = parse_export(text, columns={"day": "when", "model": "what", "cost": "Spend"})
    assert export.rows == [ExportRow(DAY, "large", {"cost": 500_000_000})]


RECORDS = [
    {"date": "2026-11-06", "model": "large", "input_tokens": 3, "cost": 0.1},
    {"date": "2026-11-06", "model": "large", "input_tokens": 4, "cost": 0.2},
]
USAGE_PAGE = {
    "object": "page",
    "has_more": False,
    "data": [
        {
            "object": "bucket",
            "start_time": 1793923200,
            "end_time": 1794009600,
            "results": [
                {
                    "object": "organization.usage.completions.result",
                    "input_tokens": 5000,
                    "output_tokens": 1000,
                    "input_cached_tokens": 4000,
                    "input_audio_tokens": 0,
                    "num_model_requests": 5,
                    "project_id": None,
                    "model": "large-2026-01-01",
                }
            ],
        },
        {"object": "bucket", "start_time": 1794009600, "end_time": 1794096000, "results": []},
    ],
}
COSTS_PAGE = {
    "object": "page",
    "has_more": False,
    "data": [
        {
            "object": "bucket",
            "start_time": 1793923200,
            "results": [
                {
                    "object": "organization.costs.result",
                    "amount": {"value": value, "currency": "usd"},
                    "line_item": f"large, {kind}",
                }
                for kind, value in (("input", 0.06), ("output", 0.1))
            ],
        }
    ],
}


@pytest.mark.parametrize(
    "text",
    [json.dumps(RECORDS), json.dumps({"data": RECORDS}), "\n".join(json.dumps(one) for one in RECORDS) + "\n"],
    ids=["list", "data", "lines"],
)
def test_json_is_read_exactly(text: str) -> None:
    assert parse_export(text) == Export(
        [ExportRow(DAY, "large", {"input_tokens": 7, "cost": 300_000_000})], ("input_tokens", "cost")
    )


def test_pages_of_openais_usage_and_costs_are_read() -> None:
    usage = parse_export(json.dumps(USAGE_PAGE))
    figures = {"requests": 5, "input_tokens": 5000, "cached_tokens": 4000, "output_tokens": 1000}
    assert usage.rows == [ExportRow(DAY, "large-2026-01-01", figures)]  # type: ignore[arg-type]
    assert parse_export(json.dumps([USAGE_PAGE])) == usage
    costs = parse_export(json.dumps(COSTS_PAGE))
    assert costs.rows == [ExportRow(DAY, "large", {"cost": 160_000_000})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CSV.replace(",50,", ",fifty,"), "line 3 has prompt_tokens 'fifty', which is not a whole number"),
        (CSV.replace(",50,", ",-50,"), "line 3 has prompt_tokens '-50'"),
        (CSV.replace(",50,", ",1e999999999,"), "line 3 has prompt_tokens"),
        (CSV.replace("1.5", "NaN"), "line 4 has cost 'NaN', which is not an amount"),
        (CSV.replace("2026-11-07", "07/11/2026"), "line 4 has date '07/11/2026', which is no date"),
        (CSV.replace("small", ""), "line 4 has no model"),
        (CSV.replace(",1,1.5", ",1"), "line 4 has another number of columns"),
        (CSV.replace("1.5", "1.5,9"), "line 4 has another number of columns"),
        (CSV.replace("small", '"small'), "line 4 is no CSV"),
        (CSV.splitlines()[0], "has no rows"),
        ("", "has no rows"),
        ("model,cost\nlarge,1\n", "no column for the day"),
        ("day,cost\n2026-11-06,1\n", "no column for the model"),
        ("day,model\n2026-11-06,large\n", "nothing to compare"),
        ('[{"date": "2026-11-06",\n "model": }]', "line 2 is no JSON"),
        ('{"day": "2026-11-06", "model": "a", "cost": 1}\n{"day": \n', "line 2 is no JSON"),
        (json.dumps([RECORDS[0], {**RECORDS[0], "cost": "much"}]), "record 2 has cost 'much'"),
        (json.dumps([RECORDS[0], {**RECORDS[0], "cost": True}]), "record 2 has cost True"),
        (json.dumps([RECORDS[0], 7]), "record 2 is not a JSON object"),
        (json.dumps({**USAGE_PAGE, "has_more": True}), "not complete"),
    ],
)
def test_what_can_not_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(OperatorError) as raised:
        parse_export(text)
    assert said in str(raised.value)


@pytest.mark.parametrize("columns", [{"costs": "cost"}, {"cost": "spend"}])
def test_a_mapping_of_a_column_that_is_not_there_is_refused(columns: dict[str, str]) -> None:
    with pytest.raises(OperatorError):
        parse_export(CSV, columns=columns)
