"""What Headwater is measured beside: other gateways, each pinned and in an environment of its own, and an earlier Headwater.

All of it lies under bench/.env.
"""

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ENVIRONMENTS = BENCH / ".env"
EARLIER = ENVIRONMENTS / "earlier"
LITELLM_VERSION = "1.109.1"
PORTKEY_VERSION = "1.15.2"


def run(argv: list[str], cwd: Path) -> None:
    """Run one installation step; RuntimeError with what it said when it fails."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")


def is_made(home: Path, stamp: str) -> bool:
    """Whether `home` was completely installed from the pins whose text is `stamp`."""
    mark = home / "installed"
    return mark.is_file() and mark.read_text() == stamp


def litellm() -> Path:
    """LiteLLM's environment, installed on first use (and again when its pins change)."""
    home, pins = ENVIRONMENTS / "litellm", BENCH / "requirements-litellm.txt"
    stamp = f"{sys.version_info[:2]}\n{pins.read_text()}"
    if not is_made(home, stamp):
        print(f"installing LiteLLM {LITELLM_VERSION} into {home.relative_to(BENCH.parent)} …", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(home)], BENCH)
        install = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*install, "--no-deps", "--require-hashes", "-r", str(pins)], BENCH)
        (home / "installed").write_text(stamp)
    return home


def portkey() -> Path:
    """Portkey's environment, installed on first use (and again when its lock changes); needs node and npm."""
    home = ENVIRONMENTS / "portkey"
    stamp = (BENCH / "package-lock.json").read_text()
    if not is_made(home, stamp):
        if not (shutil.which("npm") and shutil.which("node")):
            raise RuntimeError(
                "Portkey's gateway needs node (20 or newer) and npm on PATH; "
                "without them, leave it out: --subjects bare,headwater,litellm"
            )
        print(f"installing Portkey's gateway {PORTKEY_VERSION} into {home.relative_to(BENCH.parent)} …", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(BENCH / name, home / name)
        # Its one install script applies patches it does not ship; leaving scripts out changes nothing.
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], home)
        (home / "installed").write_text(stamp)
    return home


def earlier(commit: str) -> None:
    """Lay out the package as it was at a commit, to be run in this environment.

    Raises RuntimeError when there is no such commit, or when it needs other packages than this environment has.
    """

    def git(*argv: str) -> bytes:
        done = subprocess.run(["git", *argv], cwd=BENCH.parent, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"git {' '.join(argv)} failed: {done.stderr.decode().strip()}")
        return done.stdout

    if git("diff", "--name-only", commit, "--", "requirements/core.txt"):
        raise RuntimeError(
            f"{commit} needs other packages than this environment has; measure it in a checkout of its own."
        )
    shutil.rmtree(EARLIER, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "src"))) as archive:
        archive.extractall(EARLIER, filter="data")


def site_packages(environment: Path) -> Path:
    """The folder a Python environment's packages lie in."""
    return next((environment / "lib").glob("python3*")) / "site-packages"
