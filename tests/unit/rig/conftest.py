"""One fake engine for all tests of a module, and the bodies they send."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.rig.processes import FakeEngineHandle, fake_engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    """A fake engine without knobs that the tests of one module share; each uses request ids of its own."""
    async with fake_engine() as handle:
        yield handle


def chat_body(model: str = "m", *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """A small chat request."""
    messages = [{"role": "user", "content": "one two three"}]
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"model": model, "messages": messages, "stream": stream} | options | fields
