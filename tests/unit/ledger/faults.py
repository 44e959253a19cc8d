"""Programs ended or failed at one chosen system call: strace counts the calls and injects a signal or an error there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "/usr/bin:/bin"}


def run_until(
    call: str, number: int, *program: str, what: str = "signal=KILL", paths: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `python PROGRAM`; at its number-th system call of this name (on one of the paths) the injection happens.

    what: strace's words, such as `signal=KILL` or `error=ENOSPC`. A killed program has a negative return code.
    """
    chosen = [word for path in paths for word in ("-P", str(path))]
    inject = f"inject={call}:{what}:when={number}"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", *chosen, "-e", f"trace={call}", "-e", inject]
    return subprocess.run(
        [*strace, sys.executable, *program],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def count_calls(call: str, *program: str, log: Path) -> int:
    """How many system calls of this name the program makes when nothing is injected."""
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", sys.executable, *program],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sum(f" {call}(" in line for line in log.read_text().splitlines())
