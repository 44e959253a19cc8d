"""The runner: results, resumption, exit codes; and what the rows say."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from gate.children import require_strace
from gate.progress import Progress
from gate.rigs import RIGS, load
from gate.rows import Row, Size, missed, rows_of, sentence, twin_row
from gate.run import main
from gate.state import State

GOOD: dict[str, int | float] = {"lost": 0, "doubled": 0, "kills": 3}


def test_rows_that_meet_every_goal_miss_none() -> None:
    assert missed([*rows_of("t1", GOOD), twin_row("t1", "late", is_caught=True)]) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*rows_of("t1", GOOD | {"lost": 2}), twin_row("t1", "late", is_caught=True)], "lost is 2"),
        ([*rows_of("t1", GOOD), twin_row("t1", "late", is_caught=False)], "not caught"),
        (rows_of("t1", GOOD), "No broken build"),
        ([twin_row("t1", "late", is_caught=True)], "No figure that must be 0"),
    ],
)
def test_each_missed_goal_is_said(rows: list[Row], said: str) -> None:
    (found,) = missed(rows)
    assert said in found


def test_a_twins_row_carries_nothing_else() -> None:
    assert twin_row("t4", "two_transactions", is_caught=True) == {
        "test": "t4/two_transactions",
        "backend": "sqlite",
        "metric": "twin_caught",
        "value": 1,
    }


def test_the_sentence_has_every_figure() -> None:
    rows = [*rows_of("t1", GOOD), twin_row("t1", "late", is_caught=True)]
    assert sentence("t1", rows, 61.4) == "t1: lost 0, doubled 0, kills 3; 1 of 1 twins caught; 61 s."


def test_an_interrupted_state_goes_on_and_a_fresh_one_does_not(tmp_path: Path) -> None:
    first = State.open(tmp_path, "t1", "short", 7)
    first.use_seeds([7, 8])
    first.save("round-1", {"lost": 0, "kills": 3})
    first.save("round-2", {"lost": 1, "kills": 4})
    again = State.open(tmp_path, "t1", "short", 7)
    assert again.is_resumed
    assert again.is_done("round-1")
    assert not again.is_done("round-3")
    assert (again.seeds, again.started_at) == ([7, 8], first.started_at)
    assert again.elapsed_s > 0
    assert again.sums("round-") == {"lost": 1, "kills": 7}
    assert not State.open(tmp_path, "t1", "short", 8).is_resumed, "another seed is another run"
    assert not State.open(tmp_path, "t1", "short", 7, is_fresh=True).is_resumed
    again.discard()
    assert not State.open(tmp_path, "t1", "short", 7).is_resumed


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A rig of three rounds, registered as t0; `stop_at` interrupts it before that round, `lost` is what each finds."""
    module: Any = ModuleType("rig_of_a_test")
    module.NAME, module.stop_at, module.lost, module.ran = "t0", None, 0, []

    async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
        progress.begin("rounds", 3)
        for number in range(3):
            if state.is_done(f"round-{number}"):
                continue
            if module.stop_at == number:
                raise KeyboardInterrupt
            module.ran.append((size, seed, number))
            state.save(f"round-{number}", {"lost": module.lost, "kills": 1})
            progress.advance()
        return [*rows_of("t0", state.sums("round-")), twin_row("t0", "late", is_caught=True)]

    module.run = run
    monkeypatch.setitem(sys.modules, "rig_of_a_test", module)
    monkeypatch.setitem(RIGS, "t0", "rig_of_a_test")
    return module


def run_gate(directory: Path, *arguments: str) -> int:
    return main(
        ["t0", "--results", str(directory / "results"), "--state", str(directory / "state"), "--seed", "5", *arguments]
    )


def test_a_run_writes_its_result_and_ends_with_a_sentence(
    rig: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_gate(tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("t0: lost 0, kills 3; 1 of 1 twins caught")
    result = msgspec.json.decode((tmp_path / "results" / "t0.json").read_bytes())
    assert {name: result[name] for name in ("test", "size", "seeds")} == {"test": "t0", "size": "full", "seeds": [5]}
    assert {"test": "t0", "backend": "sqlite", "metric": "kills", "value": 3} in result["rows"]
    assert {"cpu", "cores", "kernel", "python", "sqlite"} <= set(result["machine"])
    assert str(tmp_path) not in msgspec.json.encode(result).decode()
    assert list((tmp_path / "state").iterdir()) == [], "a finished run starts over next time"


def test_a_short_run_leaves_the_full_result_alone(rig: Any, tmp_path: Path) -> None:
    assert run_gate(tmp_path, "--size", "short") == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["t0.short.json"]


def test_an_interrupted_run_goes_on_where_it_stopped(
    rig: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig.stop_at = 1
    assert run_gate(tmp_path) == 130
    assert "goes on" in capsys.readouterr().err
    rig.stop_at = None
    assert run_gate(tmp_path) == 0
    assert rig.ran == [("full", 5, 0), ("full", 5, 1), ("full", 5, 2)]


def test_fresh_starts_over(rig: Any, tmp_path: Path) -> None:
    rig.stop_at = 2
    run_gate(tmp_path)
    rig.stop_at = None
    assert run_gate(tmp_path, "--fresh") == 0
    assert [number for _, _, number in rig.ran] == [0, 1, 0, 1, 2]


def test_a_missed_goal_is_exit_1(rig: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig.lost = 1
    assert run_gate(tmp_path) == 1
    assert "MISSED t0: lost is 3; it must be 0" in capsys.readouterr().out


def test_what_the_machine_lacks_is_said_in_words(
    rig: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
        require_strace()
        return []

    rig.run = run
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_gate(tmp_path) == 2
    said = capsys.readouterr().err
    assert "strace is not installed" in said
    assert "make apt" in said


def test_an_unknown_test_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["t99"])
    assert ended.value.code == 2
    assert f"there are {', '.join(RIGS)}" in capsys.readouterr().err


@pytest.mark.parametrize("name", RIGS)
def test_every_registered_rig_is_one(name: str) -> None:
    rig = load(name)
    assert name == rig.NAME
    assert callable(rig.run)
