"""`headwater ledger …` and `headwater usage receipt`, run as a person runs them beside books of every kind."""

import csv
import io
import json
from pathlib import Path

import pytest

from headwater.cli.ledger import parse_tolerance
from headwater.errors import OperatorError
from headwater.ledger.reconcile import Tolerance
from headwater.ledger.store import open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.money import parse_nanos
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_config import headwater
from tests.unit.ledger import books
from tests.unit.ledger.doctored import doctor, one
from tests.unit.ledger.settlements import PARENTS


@pytest.fixture(scope="module")
def filled(empty: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of books with settlements of all kinds."""
    path = tmp_path_factory.mktemp("filled") / "headwater.db"
    path.write_bytes(empty)
    writer = LedgerWriter(open_writer(path), on_fatal=lambda _: None)
    writer.start()
    writer.submit(PARENTS).result(20)
    writer.close()
    books.build(path, requests_count=60)
    return path.read_bytes()


@pytest.fixture
def database(run: Run, filled: bytes, short_path: Path) -> Path:
    """The database of the directory in which `run` runs commands."""
    path = short_path / "data" / "headwater.db"
    path.write_bytes(filled)
    return path


# -- verify --------------------------------------------------------------------------------------------------------------


def test_verify_says_that_the_books_balance(database: Path, short_path: Path) -> None:
    done = headwater("ledger", "verify", cwd=short_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The books balance" in done.stdout


def test_verify_of_a_doctored_copy_names_the_row_and_exits_with_1(
    database: Path, short_path: Path, filled: bytes
) -> None:
    copy = short_path / "copy.db"
    copy.write_bytes(filled)
    doctor(copy, "UPDATE balances SET balance_nanos = 0 WHERE account = 'revenue/m'")
    done = headwater("ledger", "verify", str(copy), cwd=short_path)
    assert done.returncode == 1
    assert "balances revenue/m: balance_nanos is 0, should be " in done.stdout
    told = json.loads(headwater("ledger", "verify", str(copy), "--json", cwd=short_path).stdout)
    assert (told["verdict"], told["differences"][0]["id"]) == ("differs", "revenue/m")
    assert headwater("ledger", "verify", cwd=short_path).returncode == 0


def test_verify_of_nothing_exits_with_2(short_path: Path) -> None:
    done = headwater("ledger", "verify", cwd=short_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There are no books yet")


# -- statement -------------------------------------------------------------------------------------------------------------


def test_a_statement_as_json_has_exact_amounts_that_add_up(run: Run, database: Path) -> None:
    told = run("ledger", "statement", "--organization", "2", "--month", "2026-11", "--by", "key", "--json").json()
    assert (told["organization_id"], told["currency"], told["by"]) == ("org_2", "USD", "key")
    assert (told["start"], told["end"]) == ("2026-11-01T00:00:00+00:00", "2026-12-01T00:00:00+00:00")
    assert told["closing_nanos"] == (
        told["opening_nanos"]
        + told["grants_nanos"]
        + told["adjustments_nanos"]
        - told["lapsed_nanos"]
        - told["charges_nanos"]
        - told["late_nanos"]
    )
    assert parse_nanos(told["closing"]) == told["closing_nanos"]
    [line] = told["lines"]
    assert (line["id"], line["amount_nanos"]) == ("key_2", told["charges_nanos"] + told["late_nanos"])


def test_a_statement_as_csv_has_one_column_that_adds_up(run: Run, database: Path) -> None:
    out = run("ledger", "statement", "--organization", "org_1", "--month", "2026-11", "--csv").out
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["kind"] for row in rows][:4] == ["opening", "grants", "adjustments", "lapsed"]
    assert rows[-1]["kind"] == "closing"

    def nanos(amount: str) -> int:
        return -parse_nanos(amount[1:]) if amount.startswith("-") else parse_nanos(amount)

    *before, closing = [nanos(row["amount"]) for row in rows]
    assert sum(before) == closing
    assert {row["group"] for row in rows if row["kind"] == "charge"} == {"m", "long", "free", "acme/large"}


def test_a_statement_for_a_person(run: Run, database: Path) -> None:
    out = run("ledger", "statement", "--organization", "default", "--month", "2026-11").out
    for word in (
        "Statement of default for November 2026",
        "Opening balance",
        "Closing balance",
        "acme/large",
        "borne by",
    ):
        assert word in out


def test_a_statement_that_does_not_agree_with_the_books_fails(run: Run, database: Path) -> None:
    doctor(database, "UPDATE balances SET balance_nanos = balance_nanos + 5 WHERE account = 'wallet/org_2'")
    ran = run("ledger", "statement", "--organization", "2", "--month", "2026-11", status=1)
    assert "Closing balance" in ran.out
    assert "0.000000005 USD more" in ran.err
    assert "headwater ledger verify" in ran.err


@pytest.mark.parametrize("month", ["2026-13", "2026", "11/2026", "9999-01", "0001-01", "2026-1"])
def test_what_is_no_month_is_refused(run: Run, month: str) -> None:
    assert "is no month" in run("ledger", "statement", "--organization", "2", "--month", month, status=1).err


def test_a_month_without_anything_has_a_balance_all_the_same(run: Run, database: Path) -> None:
    told = run("ledger", "statement", "--organization", "2", "--month", "2026-12", "--json").json()
    assert told["lines"] == []
    assert told["opening_nanos"] == told["closing_nanos"] > 0


def test_an_unknown_organization_is_refused(run: Run, database: Path) -> None:
    assert "headwater organizations list" in run("ledger", "statement", "--organization", "nobody", status=1).err


# -- receipt ---------------------------------------------------------------------------------------------------------------


def test_a_receipt_for_a_person_can_be_worked_out_again(run: Run, database: Path) -> None:
    request_id = one(database, "SELECT request_id FROM usage_records WHERE flags = 'absorbed' ORDER BY 1 LIMIT 1")
    out = run("usage", "receipt", request_id).out
    for word in (
        request_id,
        "÷ 1,000,000 =",
        "Charged      0.000000005 USD; ",
        "borne by the platform",
        "revenue/m",
        "sum",
    ):
        assert word in out


def test_every_receipt_can_be_printed(run: Run, database: Path) -> None:
    for request_id in one(database, "SELECT group_concat(request_id, ' ') FROM usage_records").split():
        assert request_id in run("usage", "receipt", request_id).out
    told = run("usage", "receipt", request_id, "--json").json()
    assert (told["request_id"], told["entries_sum"]) == (request_id, "0")


def test_an_unknown_request_is_refused(run: Run, database: Path) -> None:
    assert "x-request-id" in run("usage", "receipt", "req_none", status=1).err


def test_usage_itself_is_as_it_was(run: Run, database: Path) -> None:
    told = run("usage", "--by", "model", "--start", "2026-11-01", "--end", "2026-12-01", "--json").json()
    assert {row["model"] for row in told} == {"m", "long", "free", "acme/large"}
    assert "before --end" in run("usage", "--start", "2026-11-02", "--end", "2026-11-01", status=1).err


# -- reconcile -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def export(database: Path, short_path: Path) -> Path:
    """What the upstream says: the truth."""
    lines = one(
        database,
        "SELECT group_concat(line, char(10)) FROM (SELECT date(started_at_ms / 1000, 'unixepoch') || ',large,' || count(*)"
        " || ',' || printf('%.9f', sum(cost_nanos) / 1e9) AS line FROM attempts"
        " WHERE target = 'acme/large' GROUP BY started_at_ms / 86400000)",
    )
    path = short_path / "export.csv"
    path.write_text(f"day,model,requests,spend\n{lines}\n")
    return path


def test_an_export_that_agrees_exits_with_0(run: Run, export: Path) -> None:
    arguments = ("ledger", "reconcile", "--upstream", "acme", str(export), "--column", "cost=spend")
    assert "Nothing differs" in run(*arguments).out
    told = run(*arguments, "--json").json()
    assert told["is_equal"] is True
    assert all(row["difference"]["cost"] == "0" for row in told["rows"])
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--csv").out)))
    assert {row["figure"] for row in rows} == {"requests", "cost"}


def test_an_export_that_differs_exits_with_1(run: Run, export: Path) -> None:
    export.write_text(export.read_text().replace("large,", "large,1", 1))
    arguments = ("ledger", "reconcile", "--upstream", "acme", str(export), "--column", "cost=spend")
    assert "differs" in run(*arguments, status=1).out
    told = run(*arguments, "--json", status=1).json()
    assert told["rows"][0]["exceeding"] == ["requests"]
    run(*arguments, "--tolerance", "99%")


def test_a_model_and_an_upstream_have_to_be_known(run: Run, export: Path) -> None:
    arguments = ("ledger", "reconcile", str(export), "--column", "cost=spend", "--upstream")
    assert "Configured are: acme." in run(*arguments, "other", status=1).err
    export.write_text(export.read_text().replace("large", "large-v2"))
    run(*arguments, "acme", status=1)
    run(*arguments, "acme", "--model", "large-v2=large")
    assert "is not NAME=NAME" in run(*arguments, "acme", "--model", "large-v2", status=1).err


def test_a_file_that_can_not_be_read_is_named(run: Run, database: Path, short_path: Path) -> None:
    assert "can't be read" in run("ledger", "reconcile", "none.csv", "--upstream", "acme", status=1).err
    (short_path / "bytes.csv").write_bytes(b"\xff\xfe")
    assert "not a text file" in run("ledger", "reconcile", "bytes.csv", "--upstream", "acme", status=1).err
    (short_path / "bad.csv").write_text("day,model,cost\n2026-11-06,large,much\n")
    assert "line 2 has cost 'much'" in run("ledger", "reconcile", "bad.csv", "--upstream", "acme", status=1).err


def test_tolerances_are_amounts_or_percentages() -> None:
    assert parse_tolerance("0.01") == Tolerance(nanos=10_000_000)
    assert parse_tolerance("0.5%") == Tolerance(part=parse_tolerance("0.5%").part)
    assert str(parse_tolerance("0.5%").part) == "0.005"
    for text in ("-1", "much", "101%", "-1%", "%"):
        with pytest.raises(OperatorError):
            parse_tolerance(text)
