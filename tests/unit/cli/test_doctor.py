"""`headwater doctor`, run as a person runs it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SMALL = '[[upstreams]]\nname = "acme"\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["x"]\n'


def doctor(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    return subprocess.run(
        [sys.executable, "-m", "headwater", "doctor", *arguments],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_machine_that_is_ready_exits_with_0_and_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text(SMALL, encoding="utf-8")
    done = doctor(tmp_path, "--set", "gateway.listen=127.0.0.1:0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fail" not in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["headwater.toml"]


def test_a_taken_port_fails_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text(SMALL, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = doctor(tmp_path, "--json", "--set", f"gateway.listen=127.0.0.1:{server.getsockname()[1]}")
    assert done.returncode == 1, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["port"]["verdict"] == "fail"
    assert "is taken by another program" in checks["port"]["what"]
    assert "--set gateway.listen=" in checks["port"]["now"]
    assert checks["sqlite"]["verdict"] == "ok"


def test_a_model_nobody_knows_fails(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text('[[deployments]]\nname = "a"\nmodel = "qwen-9000"\n', encoding="utf-8")
    done = doctor(tmp_path, "--set", "gateway.listen=127.0.0.1:0")
    assert done.returncode == 1
    assert "The model of deployment a can't be served" in done.stdout


def test_a_bad_configuration_exits_with_2(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--set", "gateway.listen=nowhere")
    assert done.returncode == 2
    assert "gateway.listen: expected" in done.stderr
