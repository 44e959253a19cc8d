"""A model hub on loopback that misbehaves on request, and tiny wheels for pip: what the model store's tests fetch from.

The organization in the path says how the file is served: `hf:cut/models/tiny.gguf` is cut half-way, and so on.
"""

import contextlib
import http.server
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Hub:
    """The server's address, what it serves, and what it was asked. gate: a `gated` answer waits for it."""

    content: bytes
    address: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (behaviour, Range header)
    gate: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def ranges(self, behaviour: str) -> list[str | None]:
        """The Range headers of the requests for this behaviour, in order."""
        return [asked_range for asked, asked_range in self.asked if asked == behaviour]


@contextlib.contextmanager
def serve(content: bytes) -> Iterator[Hub]:
    """Run a hub that serves `content`."""
    hub = Hub(content)

    class Handler(_Handler):
        served = hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    served: Hub

    def do_GET(self) -> None:
        hub, behaviour = self.served, self._behaviour()
        hub.asked.append((behaviour, self.headers.get("Range")))
        content = hub.content
        match behaviour:
            case "missing":
                self.send_error(404)
            case "norange":
                self._answer(200, content, len(content))
            case "cut":  # half of what is left, each time
                start = self._start()
                left = len(content) - start
                self._answer(206 if start else 200, content[start : start + (left + 1) // 2], left, start)
            case "nothing":
                self._answer(200, b"", len(content))
            case "stall" | "silent":
                if behaviour == "stall":
                    self._answer(200, content[:1000], len(content))
                hub.closing.wait()
            case "liar":
                self._answer(200, content, len(content) + 7)
            case "endless":  # no length, and more than there should be
                self._answer(200, content + b"more", None)
            case "wrong":
                start = self._start()
                self._answer(206 if start else 200, bytes(len(content) - start), len(content) - start, start)
            case "elsewhere":  # another range than was asked for
                self._answer(206, content[5:], len(content) - 5, 5)
            case "moved" | "away" | "loop":
                away = "http://elsewhere.invalid/tiny.gguf"
                self._redirect(
                    {"moved": self.path.replace("moved", "good"), "away": away, "loop": self.path}[behaviour]
                )
            case "gated":
                self._answer(200, content[:1000], len(content))
                hub.gate.wait()
                with contextlib.suppress(OSError):
                    self.wfile.write(content[1000:])
            case _:
                start = self._start()
                self._answer(206 if start else 200, content[start:], len(content) - start, start)

    def _behaviour(self) -> str:
        path = self.path.removeprefix("/api/v1/models")
        return path.split("/")[1]

    def _start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def _answer(self, status: int, body: bytes, length: int | None, start: int = 0) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if status == 206:
            total = len(self.served.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that has left is what some tests are about
            self.wfile.write(body)
            self.wfile.flush()

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Requests are kept in `Hub.asked`."""


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """A port that takes no connection and refuses none: its queue is full, so the kernel drops what comes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def build_wheel(
    directory: Path, package: str, version: str, members: dict[str, bytes], *, damage: bytes | None = None
) -> Path:
    """A wheel that pip accepts, holding `members`. damage: these bytes, found in it, are spoilt after it is written."""
    directory.mkdir(parents=True, exist_ok=True)
    name = package.replace("-", "_")
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        # To import it would fail the test, and so would its dependency, which isn't anywhere.
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('a model package was imported')")
        for member, data in members.items():
            archive.writestr(member, data)
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: package-nobody-has\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    if damage is not None:
        path.write_bytes(path.read_bytes().replace(damage, bytes(len(damage)), 1))
    return path
