"""What was measured of this machine's engines, kept so that the next start need not measure again."""

import json
import os
from importlib import metadata
from pathlib import Path

import structlog

from headwater.engines.child import choose_batch_tokens

log = structlog.get_logger()


class Calibration:
    """Seconds per prompt token by model, threads and engine build, in one small JSON file of the data directory.

    The fastest measurement is kept: a slower one was taken while something else used the machine. Losing the file costs
    one measurement; a file that can't be read is treated as lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token_s = _read(path)

    def batch_tokens(self, model_digest: str, threads: int) -> int | None:
        """The batch size that was right before, or None: measure."""
        token_s = self._token_s.get(_key(model_digest, threads))
        return None if token_s is None else choose_batch_tokens(token_s)

    def store(self, model_digest: str, threads: int, token_s: float) -> None:
        """Remember a measurement if it is the fastest so far; the file is replaced whole."""
        key = _key(model_digest, threads)
        if self._token_s.get(key, token_s + 1) <= token_s:
            return
        self._token_s[key] = token_s
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(self._token_s, indent=1))
            temporary.replace(self._path)
        except OSError as error:  # such as a full disk; the next start measures again
            log.warning("calibration_not_stored", path=str(self._path), error=str(error))


def _key(model_digest: str, threads: int) -> str:
    try:
        build = metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        build = "none"
    return f"{model_digest}/{threads} threads/{build}/{os.cpu_count()} cores"


def _read(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return (
        {key: value for key, value in content.items() if isinstance(value, float) and value > 0}
        if isinstance(content, dict)
        else {}
    )
