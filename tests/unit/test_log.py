"""A line of the log as machines read it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headwater.log import _to_json


def line(level: str, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_to_json(None, level, fields))
    return found


def test_a_line_has_its_fields_its_level_and_the_time() -> None:
    found = line("info", event="request_settled", model="a/b", ttft_ms=None, where=Path("/tmp"))
    age = datetime.now(UTC) - datetime.fromisoformat(found.pop("timestamp"))
    assert 0 <= age.total_seconds() < 60
    assert found == {
        "event": "request_settled",
        "model": "a/b",
        "ttft_ms": None,
        "where": "/tmp",
        "level": "info",
    }


def test_an_exception_is_told_with_its_trace() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        found = line("error", event="request_failed", exc_info=error)
    assert "ValueError: why" in found["exception"]
    assert "test_log.py" in found["exception"]
    assert "exc_info" not in found
