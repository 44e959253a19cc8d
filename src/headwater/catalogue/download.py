"""Fetching a model over HTTP, on from where it stopped.

The pinned size and hash decide what is right, so bytes begun at one server may be continued at another.
"""

import http.client
import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from headwater import __version__
from headwater.catalogue.dial import basic, connect
from headwater.catalogue.failures import SourceFailed
from headwater.catalogue.partial import Partial
from headwater.catalogue.sources import without_credentials

REDIRECTS_MAX: Final = 5
FRUITLESS_TRIES_MAX: Final = 4  # tries in a row that brought less than FRUIT_BYTES
FRUIT_BYTES: Final = 8 * 2**20
BYTES_PER_S_MIN: Final = 1024  # over each idle time-out; a server that drips is as good as silent
_CHUNK_BYTES: Final = 2**18
_REDIRECTS: Final = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Waits for a server, in seconds.

    connect_s: name, connection and handshake together; idle_s: silence once it answers;
    pause_s: before the third fruitless try, then doubled.
    """

    connect_s: float
    idle_s: float = 30.0
    pause_s: float = 0.5

    @property
    def answer_s(self) -> float:
        """From the request to the answer's first line: a hub may look the file up, so more than a connection takes."""
        return min(self.idle_s, 3 * self.connect_s)


class _CutShort(Exception):
    """The connection broke or fell silent; the rest may be asked for again."""


def download(url: str, partial: Partial, timeouts: Timeouts, on_bytes: Callable[[], None]) -> None:
    """Fill `partial` to its size from `url`, calling `on_bytes` after each chunk.

    Raises SourceFailed (SourceUnreachable: no connection came about), WrongLength, or OSError when the disk refuses.
    """
    fruitless_count, pause_s = 0, 0.0
    while partial.missing_bytes:
        start = partial.length
        try:
            _attempt(urlsplit(url), partial, timeouts, on_bytes)
        except _CutShort as cut:
            fruitless_count = 0 if partial.length - start >= FRUIT_BYTES else fruitless_count + 1
            if fruitless_count == FRUITLESS_TRIES_MAX:
                raise SourceFailed(f"{cut}, {fruitless_count} times in a row") from cut
            time.sleep(pause_s)
            pause_s = min(8.0, 2 * pause_s or timeouts.pause_s) if fruitless_count else 0.0


def redirect_target(base: str, location: str) -> SplitResult:
    """Where a redirect leads. Raises SourceFailed unless that is `https:`, or stays on the very server that was asked.

    Pure. Credentials never follow: each request carries only what its own address holds.
    """
    here = urlsplit(base)
    try:
        # Headers arrive as latin-1; what isn't plain ASCII is escaped byte by byte, as browsers do.
        there = urlsplit(
            quote(urljoin(base, location), safe="%/:?#[]@!$&'()*+,;=~", encoding="latin-1", errors="replace")
        )
        same_server = (here.scheme, here.hostname, here.port) == (there.scheme, there.hostname, there.port)
    except ValueError as error:
        raise SourceFailed(f"it redirects to an impossible address ({error})") from error
    if there.scheme != "https" and not (same_server and here.scheme == "http"):
        raise SourceFailed(f"it redirects to {without_credentials(there.geturl())}, which is not https")
    if not there.hostname:
        raise SourceFailed("it redirects to an address without a host")
    return there


def _attempt(url: SplitResult, partial: Partial, timeouts: Timeouts, on_bytes: Callable[[], None]) -> None:
    for _ in range(REDIRECTS_MAX + 1):
        connection, target, headers = connect(url, connect_timeout_s=timeouts.connect_s)
        # The response is closed too: of a connection that isn't kept alive it holds the socket.
        with (
            closing(connection),
            closing(_ask(connection, url, target, headers, start=partial.length, timeouts=timeouts)) as response,
        ):
            if response.status not in _REDIRECTS:
                _check_answer(response, partial)
                _receive(response, partial, timeouts, on_bytes)
                return
            url = redirect_target(url.geturl(), response.getheader("Location", ""))
    raise SourceFailed(f"it redirects more than {REDIRECTS_MAX} times")


def _ask(
    connection: http.client.HTTPConnection,
    url: SplitResult,
    target: str,
    proxy_headers: dict[str, str],
    *,
    start: int,
    timeouts: Timeouts,
) -> http.client.HTTPResponse:
    headers = {
        "Host": url.netloc.rpartition("@")[2],
        "User-Agent": f"headwater/{__version__}",
        "Accept-Encoding": "identity",
        **proxy_headers,
    }
    if start:
        headers["Range"] = f"bytes={start}-"
    if url.username:
        headers["Authorization"] = basic(url)
    sock: socket.socket = connection.sock
    sock.settimeout(timeouts.answer_s)
    try:
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        sock.settimeout(timeouts.idle_s)
        return response
    except TimeoutError as error:
        raise SourceFailed(f"it took the connection and didn't answer in {timeouts.answer_s:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutShort(f"the connection broke ({str(error) or type(error).__name__})") from error


def _check_answer(response: http.client.HTTPResponse, partial: Partial) -> None:
    """Compare what the server promises with what is wanted, before a byte is taken."""
    length = response.getheader("Content-Length", "")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.getheader("Content-Range", ""))
        if match is None or int(match[1]) != partial.length:
            raise SourceFailed("it answered with another range than was asked for")
        total = match[3]
    elif response.status == 200:
        total = length
    elif response.status == 416:
        raise SourceFailed(f"its file ends before byte {partial.length:,}; the model has {partial.size_bytes:,}")
    else:
        raise SourceFailed(f"it answered {response.status} {response.reason}")
    if total.isdigit() and int(total) != partial.size_bytes:
        raise SourceFailed(f"its file has {int(total):,} bytes, the model has {partial.size_bytes:,}")
    if response.status == 200 and partial.length:
        partial.rewind(0)  # it doesn't know ranges, and sends the whole file


def _receive(
    response: http.client.HTTPResponse,
    partial: Partial,
    timeouts: Timeouts,
    on_bytes: Callable[[], None],
) -> None:
    window_start_s, window_length = time.monotonic(), partial.length
    while True:
        try:
            chunk = response.read1(_CHUNK_BYTES)
        except TimeoutError as error:
            raise _CutShort(f"it sent nothing for {timeouts.idle_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _CutShort(f"the connection broke ({str(error) or type(error).__name__})") from error
        if not chunk:
            break
        partial.write(chunk)
        on_bytes()
        now_s = time.monotonic()
        if now_s - window_start_s >= timeouts.idle_s:
            if partial.length - window_length < BYTES_PER_S_MIN * (now_s - window_start_s):
                raise _CutShort(f"it sent less than {BYTES_PER_S_MIN:,} bytes a second")
            window_start_s, window_length = now_s, partial.length
    if partial.missing_bytes:
        raise _CutShort(f"it stopped {partial.missing_bytes:,} bytes before the end")
