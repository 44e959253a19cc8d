"""`headwater config explain` and the frame of the command line, run as a person runs it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from headwater import __version__

CANARY = "sk-canary-c0ffee"


def headwater(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; no HEADWATER_ variable is inherited."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    source = str(Path(__file__).parents[3] / "src")
    return subprocess.run(
        [sys.executable, "-m", "headwater", *arguments],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": source, "COLUMNS": "200", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_explain_shows_the_value_its_origin_and_what_it_hides(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text('[gateway]\nlisten = "127.0.0.1:1"\n', encoding="utf-8")
    environ = {"HEADWATER_GATEWAY__LISTEN": "127.0.0.1:2"}
    done = headwater("config", "explain", "gateway.listen", cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stderr
    assert 'gateway.listen = "127.0.0.1:2"' in done.stdout
    assert "environment HEADWATER_GATEWAY__LISTEN" in done.stdout
    assert '"127.0.0.1:1" (file headwater.toml)' in done.stdout
    assert '"127.0.0.1:8080" (default)' in done.stdout


def test_explain_as_json_is_one_document(tmp_path: Path) -> None:
    done = headwater("config", "explain", "gateway", "--json", "--set", "gateway.stop_count_max=3", cwd=tmp_path)
    rows = {row["key"]: row for row in json.loads(done.stdout)}
    assert rows["gateway.stop_count_max"]["value"] == 3
    assert rows["gateway.stop_count_max"]["origin"] == "command line"
    assert rows["gateway.stop_count_max"]["hides"] == [{"value": 16, "origin": "default"}]


@pytest.mark.parametrize("as_json", [False, True])
def test_explain_shows_every_setting_and_no_secret(tmp_path: Path, as_json: bool) -> None:
    text = '[[upstreams]]\nname = "acme"\nbase_url = "https://h/v1"\nmodels = ["x"]\napi_key = { env = "ACME" }\n'
    (tmp_path / "own.toml").write_text(text + 'headers = { X-Token = { env = "ACME" } }\n', encoding="utf-8")
    arguments = ["config", "explain", "--config", "own.toml", *(["--json"] if as_json else [])]
    done = headwater(*arguments, cwd=tmp_path, environ={"ACME": CANARY})
    assert done.returncode == 0, done.stderr
    assert "upstreams[0].api_key" in done.stdout
    assert "***" in done.stdout
    assert CANARY not in done.stdout + done.stderr


def test_a_bad_configuration_exits_with_2_and_says_what_why_and_what_now(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text("[gateway]\nlisten = 1\nlisen = 2\n", encoding="utf-8")
    done = headwater("config", "explain", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "error: The configuration has 2 problems; nothing was started."
    assert lines[1].startswith("  gateway.listen: expected an address")
    assert lines[2].startswith("  gateway.lisen: unknown key (headwater.toml). Did you mean listen?")
    assert lines[3].startswith("  Correct this in headwater.toml")


def test_an_unknown_setting_exits_with_2_and_suggests(tmp_path: Path) -> None:
    done = headwater("config", "explain", "gateway.lisen", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean gateway.listen?" in done.stderr


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = headwater("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"headwater {__version__}\n")


def test_an_unknown_noun_is_a_usage_error(tmp_path: Path) -> None:
    assert headwater("confg", cwd=tmp_path).returncode == 2


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """How quick that makes it, `bench.gateway` measures."""
    done = headwater("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "config" in done.stdout
    program = "import sys, headwater.cli.main; print(*sys.modules)"
    source = str(Path(__file__).parents[3] / "src")
    modules = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"aiohttp", "sqlalchemy", "alembic", "jsonschema", "starlette", "uvicorn", "rich.progress", "xllamacpp"}
    assert not heavy & set(modules)


def test_ctrl_c_exits_with_130() -> None:
    program = (
        "import os, sys, headwater.cli.main as m, headwater.cli.config\n"
        "headwater.cli.config.load_settings = lambda *_: (print('waiting', flush=True), os.read(0, 1))\n"
        "sys.argv = ['headwater', 'config', 'explain']\n"
        "m.main()\n"
    )
    source = str(Path(__file__).parents[3] / "src")
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": source},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
