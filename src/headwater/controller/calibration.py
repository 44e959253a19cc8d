"""What was measured of this machine's engines, kept so that the next start need not measure again."""

import json
import os
from importlib import metadata
from pathlib import Path


class Calibration:
    """Batch sizes by model, threads and engine build, in one small JSON file of the data directory.

    Losing the file costs one measurement; a file that can't be read is treated as lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batch_tokens = _read(path)

    def batch_tokens(self, model_digest: str, threads: int) -> int | None:
        """The batch size found right before, or None: measure."""
        return self._batch_tokens.get(_key(model_digest, threads))

    def store(self, model_digest: str, threads: int, batch_tokens: int) -> None:
        """Remember a batch size; the file is replaced whole."""
        key = _key(model_digest, threads)
        if self._batch_tokens.get(key) == batch_tokens:
            return
        self._batch_tokens[key] = batch_tokens
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._batch_tokens, indent=1))
        temporary.replace(self._path)


def _key(model_digest: str, threads: int) -> str:
    try:
        build = metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        build = "none"
    return f"{model_digest}/{threads} threads/{build}/{os.cpu_count()} cores"


def _read(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, int)} if isinstance(content, dict) else {}
