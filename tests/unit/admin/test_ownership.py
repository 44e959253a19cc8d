import os
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.admin.ownership import AlreadyOwned, Ownership
from headwater.errors import OperatorError

WAIT_S = 20.0
HOLDER = """
import sys
from pathlib import Path
from headwater.admin.ownership import Ownership
with Ownership(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_data_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with Ownership(directory):
        with pytest.raises(AlreadyOwned) as refused, Ownership(directory):
            pass
        assert refused.value.pid == os.getpid()
        assert str(os.getpid()) in refused.value.why
    with Ownership(directory):
        pass


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with Ownership(tmp_path / "a" / "data"):
        assert (tmp_path / "a" / "data").stat().st_mode & 0o077 == 0
        assert (tmp_path / "a" / "data" / "lock").stat().st_mode & 0o777 == 0o600


def test_a_killed_owner_owns_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": "src", "PATH": "/usr/bin"},
    )
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyOwned) as refused, Ownership(tmp_path):
            pass
        assert refused.value.pid == holder.pid
        holder.kill()
        holder.wait(WAIT_S)
        with Ownership(tmp_path):
            pass
        holder.stdin.close()
        holder.stdout.close()
    finally:
        holder.kill()
        holder.wait(WAIT_S)


def test_a_directory_that_can_not_be_made_is_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="can't be used") as refused, Ownership(tmp_path / "file" / "data"):
        pass
    assert "file" in refused.value.why
    assert not isinstance(refused.value, AlreadyOwned)
