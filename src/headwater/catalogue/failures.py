"""How fetching can fail: a source's own failure sends the pull to the next source, a full disk ends it."""

import errno
import shutil
from pathlib import Path

from headwater.errors import OperatorError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SourceFailed(Exception):
    """This source can't deliver; the message is the reason, one sentence without its full stop."""


class SourceUnreachable(SourceFailed):
    """This source can't be reached from here, or not in the time given."""


def is_disk_full(error: OSError) -> bool:
    """Whether the file system, its quota or the process's file-size limit refused more bytes."""
    return error.errno in _FULL


def disk_full(directory: Path, missing_bytes: int) -> OperatorError:
    """The error for a disk that can't take the rest of a model; missing_bytes: what was still to be written."""
    free_bytes = shutil.disk_usage(directory).free
    return OperatorError(
        f"There is no room for the model in {directory}.",
        why=f"It needs {missing_bytes:,} more bytes; {free_bytes:,} are free there (a quota may allow less).",
        now="Free some space or set `models.directory` to a bigger disk, then pull again: what has arrived is kept, "
        "until `headwater models rm` deletes it.",
    )
