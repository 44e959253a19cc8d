from pathlib import Path

import pytest

from gate.injection import Fault, Injection

DATABASE = Path("/d/x.db")
DB, WAL = f"3<{DATABASE}>", f"4<{DATABASE}-wal>"
WRITE, SYNC = f'pwrite64({WAL}, ""..., 24, 0) = 24', f"fsync({WAL}) = 0"
FAILED = "= -1 EIO (Input/output error) (INJECTED)"


@pytest.mark.parametrize(
    ("lines", "is_checkpoint"),
    [
        ([WRITE, f"fsync({WAL}) {FAILED}"], False),
        ([WRITE, f'pwrite64({WAL}, ""..., 4096, 24) {FAILED}'], False),
        ([WRITE, SYNC, f'pwrite64({WAL}, ""..., 24, 4120) {FAILED}'], False),
        ([WRITE, SYNC, SYNC, f'pwrite64({DB}, ""..., 4096, 0) {FAILED}'], True),
        ([WRITE, SYNC, SYNC, f"fsync({DB}) {FAILED}"], True),
        ([WRITE, SYNC, f"fsync({WAL}) {FAILED}"], True),
        ([WRITE, SYNC], False),
        ([], False),
    ],
)
def test_a_checkpoints_failure_is_told_from_a_commits(tmp_path: Path, lines: list[str], *, is_checkpoint: bool) -> None:
    """A commit's sync follows its writes; a checkpoint syncs the log once more, with nothing new in it."""
    log = tmp_path / "strace.txt"
    log.write_text("".join(f"7     {line}\n" for line in lines))
    injection = Injection(log, DATABASE)
    assert injection.is_checkpoint_hit is is_checkpoint
    assert len(injection.hits()) == sum("INJECTED" in line for line in lines)


def test_another_thread_between_does_not_confuse_it(tmp_path: Path) -> None:
    log = tmp_path / "strace.txt"
    log.write_text(f"7  {SYNC}\n8  {WRITE}\n7  fsync({WAL}) {FAILED}\n")
    assert Injection(log, DATABASE).is_checkpoint_hit


def test_the_log_is_read_as_it_grows(tmp_path: Path) -> None:
    log = tmp_path / "strace.txt"
    injection = Injection(log, DATABASE)
    assert injection.hits() == [], "there is no log yet"
    log.write_text(f"7  {WRITE}\n7  fsync({WAL}) = -1 EI")
    assert injection.hits() == []
    with log.open("a") as file:
        file.write("O (Input/output error) (INJECTED)\n")
    assert len(injection.hits()) == 1


def test_a_fault_reads_as_straces_expression() -> None:
    assert Fault("EIO", "pwrite64", 7, is_lasting=True).expression == "pwrite64:error=EIO:when=7+"
    assert Fault("ENOSPC", "fsync,fdatasync", 2, is_lasting=False).expression == "fsync,fdatasync:error=ENOSPC:when=2"
