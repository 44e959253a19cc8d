"""A data directory on a disk that is almost full: a small tmpfs in a mount namespace of its own."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

FREE_BYTES = 256 * 1024
RUN_TIMEOUT_S = 120
NAMESPACES = (["unshare", "--mount"], ["unshare", "--mount", "--user", "--map-root-user"])
"""As root; as anybody, where the kernel lets them."""
_SCRIPT = """
set -e
mount -t tmpfs -o size="$1",mode=0700 tmpfs "$2"
cp -a "$3/." "$2"
data=$2 kept=$4 timeout_s=$5 status=0
mkdir "$kept"
shift 5
timeout -s INT -k 10 "$timeout_s" "$@" || status=$?
cp -a "$data/." "$kept"
exit $status
"""


def namespace() -> list[str] | None:
    """The command that makes a mount namespace here; None when there may be none."""
    for command in NAMESPACES:
        probe = [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        if shutil.which(command[0]) and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return command
    return None


def small_disk(command: Sequence[str], data: Path) -> list[str]:
    """A wrapper: what follows runs with `data` on a tmpfs of its contents' size and 256 KiB more.

    command: from `namespace`. What the tmpfs held at the end is kept beside `data`, for `heal`.
    """
    source = data.with_name("data-before")
    shutil.copytree(data, source)
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) + FREE_BYTES
    return [
        *command,
        "sh",
        "-c",
        _SCRIPT,
        "sh",
        str(size),
        str(data),
        str(source),
        str(_kept(data)),
        str(RUN_TIMEOUT_S),
    ]


def heal(data: Path) -> None:
    """Put what the small disk held at its end in the place of `data`, on a disk with room."""
    shutil.rmtree(data)
    _kept(data).rename(data)


def _kept(data: Path) -> Path:
    return data.with_name("data-after")
