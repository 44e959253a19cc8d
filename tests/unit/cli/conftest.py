import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.cli.main import main
from headwater.ledger.migrate import ensure_schema

CONFIG = """
[[deployments]]
name = "qwen"
model = "qwen2.5-coder-0.5b-instruct"

[[upstreams]]
name = "acme"
base_url = "https://h/v1"
models = ["large", "small", "gone"]

[[prices]]
model = "acme/small"
input = "1"
output = "2"
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return msgspec.json.decode(self.out)


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a freshly migrated database."""
    path = tmp_path_factory.mktemp("empty") / "headwater.db"
    ensure_schema(path)
    return path.read_bytes()


@pytest.fixture
def run(short_path: Path, empty: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, in a directory with a configuration and a database; fails if it should and doesn't."""
    for name in [name for name in os.environ if name.startswith("HEADWATER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(short_path)
    (short_path / "headwater.toml").write_text(CONFIG)
    (short_path / "data").mkdir(mode=0o700)
    (short_path / "data" / "headwater.db").write_bytes(empty)

    def headwater(*arguments: str, status: int = 0) -> Ran:
        monkeypatch.setattr(sys, "argv", ["headwater", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        ran = Ran(code if isinstance(code, int) else 0, printed.out, printed.err)
        assert ran.status == status, ran
        assert "Traceback" not in ran.err
        return ran

    return headwater
