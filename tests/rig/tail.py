"""Follows a truth log as it grows, to wait for what a client can't see: that the engine has begun on its request.

The gateway chooses the engine's request ids, so a test marks a request by the length of its prompt.
"""

from pathlib import Path
from typing import Any

import msgspec

from tests.rig.oracle import prompt_tokens
from tests.rig.platform import until


class TruthTail:
    """Reads only what was appended since the last look. begun: prompt tokens → request ids of attempts that got a slot."""

    def __init__(self, path: Path) -> None:
        """path: of a running fake engine's log."""
        self._path, self._offset = path, 0
        self._received: dict[int, tuple[int, str]] = {}
        self.begun: dict[int, list[str]] = {}

    def look(self) -> None:
        """Take in the lines that are whole."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            self._offset += len(line) + 1
            if b'"event":"received"' in line or b'"event":"started"' in line:
                self._take(msgspec.json.decode(line, type=dict[str, Any]))

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "received":
            self._received[event["serial"]] = event["prompt_tokens"], event["request_id"]
        else:
            length, request_id = self._received[event["serial"]]
            self.begun.setdefault(length, []).append(request_id)

    async def wait_begun(self, messages: list[dict[str, Any]], *, count: int = 1) -> list[str]:
        """Wait until the engine works on so many attempts with a prompt as long as this one; returns their ids."""
        length = prompt_tokens(messages)

        def look() -> list[str]:
            self.look()
            found = self.begun.get(length, [])
            return found if len(found) >= count else []

        return await until(look)


def marked(number: int) -> list[dict[str, Any]]:
    """Messages whose prompt no other number's is as long as; fewer than 12 tokens are never made."""
    return [{"role": "user", "content": "word " * (9 + number)}]
