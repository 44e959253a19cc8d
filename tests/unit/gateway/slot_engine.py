"""An engine with llama.cpp's slots on a Unix socket: prompts are read in batches, cached, saved and restored; no model."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

BATCH_TOKENS = 64
TOKEN_CHARACTERS = 4
TOKEN_MS = 10
"""What reading a token is said to have taken; nothing is waited for."""


class SlotEngine:
    """What it was asked, what its slots and files hold, and how it is to misbehave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.slots: dict[int, str] = {}
        self.files: dict[str, str] = {}
        self.answer = ["Yes", ", it", " may", "."]
        self.save_status = self.restore_status = 200
        self.is_reusing = True
        self.prompt_may_go_on = asyncio.Event()
        """Awaited before the last batch of every prompt."""
        self.prompt_may_go_on.set()
        self.state_may_be_saved = asyncio.Event()
        self.state_may_be_saved.set()
        self.is_asked_to_save = asyncio.Event()

    @property
    def paths(self) -> list[str]:
        """What was asked, in order."""
        return [path for path, _ in self.asked]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["SlotEngine"]:
        """Serve until the end of the block."""
        async with await asyncio.start_unix_server(self._serve, self.path):
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = json.loads(await reader.readexactly(length))
            self.asked.append((path, body))
            if path.startswith("/slots/"):
                await self._state(
                    int(path.split("/")[2].split("?")[0]), path.endswith("save"), body["filename"], writer
                )
            else:
                await self._chat(body, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller left, which is how it cancels
        finally:
            writer.close()

    async def _state(self, slot: int, is_save: bool, name: str, writer: asyncio.StreamWriter) -> None:
        status = self.save_status if is_save else self.restore_status
        if is_save:
            self.is_asked_to_save.set()
            await self.state_may_be_saved.wait()
        answer: dict[str, Any] = {"error": {"code": status, "message": "can't", "type": "x"}}
        if status == 200 and is_save:
            self.files[name] = self.slots[slot]
            answer = {"n_saved": len(self.slots[slot]) // TOKEN_CHARACTERS, "n_written": 100 * len(self.slots[slot])}
        elif status == 200:
            self.slots[slot] = self.files[name]
            answer = {"n_restored": len(self.slots[slot]) // TOKEN_CHARACTERS}
        data = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s" % (status, len(data), data))
        await writer.drain()

    async def _chat(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        prompt = "".join(message["content"] for message in body["messages"])
        total = len(prompt) // TOKEN_CHARACTERS
        held = self.slots.get(body["id_slot"], "") if body["cache_prompt"] and self.is_reusing else ""
        cached = 0
        while cached < total - 1 and held[: 4 * cached + 4] == prompt[: 4 * cached + 4] and 4 * cached < len(held):
            cached += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")

        def say(delta: dict[str, Any], made: int, **more: Any) -> None:
            timings = {"cache_n": cached, "prompt_n": total - cached, "predicted_n": made}
            event = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "timings": timings} | more
            writer.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")

        processed = cached
        while processed < total:
            if processed + BATCH_TOKENS >= total:
                await self.prompt_may_go_on.wait()
            processed = min(total, processed + BATCH_TOKENS)
            self.slots[body["id_slot"]] = prompt[: TOKEN_CHARACTERS * processed]
            elapsed_ms = TOKEN_MS * (processed - cached)
            progress = {"total": total, "cache": cached, "processed": processed, "time_ms": elapsed_ms}
            say({"role": "assistant", "content": None}, 0, prompt_progress=progress)
            await writer.drain()
            await asyncio.sleep(0)
            if reader.at_eof() or writer.is_closing():
                return
        for made, text in enumerate(self.answer, 1):
            say({"content": text}, made)
            await writer.drain()
        finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
        writer.write(b"data: " + json.dumps({"choices": [finish]}).encode() + b"\n\n")
        usage = {
            "prompt_tokens": total,
            "completion_tokens": len(self.answer),
            "total_tokens": total + len(self.answer),
        }
        usage["prompt_tokens_details"] = {"cached_tokens": cached}  # type: ignore[assignment]
        writer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        await writer.drain()
