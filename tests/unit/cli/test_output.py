"""What commands print, to people and to scripts."""

import io
import json

import pytest

from headwater.cli.output import exit_code, print_error, print_facts, print_table
from headwater.errors import ConfigError, OperatorError


def test_a_table_shows_names_as_they_are_and_a_dash_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Keys", ["Name", "Last used"], [("[bold]ci[/bold]", None), ("数据", 3)], numbers=["Last used"])
    printed = capsys.readouterr().out
    assert "[bold]ci[/bold]" in printed
    assert "—" in printed
    assert "数据" in printed


def test_a_table_as_json_has_the_columns_as_keys(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Keys", ["Name", "Last used"], [("ci", None)], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"name": "ci", "last_used": None}]


def test_a_piped_table_does_not_fold_what_a_script_looks_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table("", ["Path", "Note"], [("/" + "p" * 100, "n" * 60)])
    assert "p" * 100 in capsys.readouterr().out


def test_facts_are_lines_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"id": "key_1", "expires": None})
    assert capsys.readouterr().out == "id       key_1\nexpires  —\n"
    print_facts({"id": "key_1", "expires": None}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"id": "key_1", "expires": None}


def test_an_error_says_what_why_and_what_now_each_on_its_line() -> None:
    stream = io.StringIO()
    print_error(OperatorError("The port is taken.", why="Process 7 holds it.", now="Choose another."), stream)
    assert stream.getvalue() == "error: The port is taken.\n  Process 7 holds it.\n  Choose another.\n"
    stream = io.StringIO()
    print_error(OperatorError("It broke."), stream)
    assert stream.getvalue() == "error: It broke.\n"


def test_a_configuration_error_has_its_own_exit_code() -> None:
    assert (exit_code(ConfigError("x")), exit_code(OperatorError("x"))) == (2, 1)
