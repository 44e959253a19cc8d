"""Step 9: the calls we make to engines and upstreams; what to say is decided by the adapters in `engines/`.

A credential goes to the configured origin only: redirects are answers like any other, and never followed.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import structlog

from headwater.engines import llamacpp, openai
from headwater.errors import EngineFailed, InvalidRequest, Overloaded, PlatformError, TimedOut
from headwater.gateway.http_client import ConnectionBroken, ConnectTimedOut, HttpClient, Origin, Response, origin_of
from headwater.gateway.leading import LeadingResponse, uninterrupted
from headwater.gateway.prefixes import Copy
from headwater.gateway.slots import Slot
from headwater.ids import REQUEST, new_id
from headwater.replica import ReplicaEndpoint
from headwater.request import Chat
from headwater.scheduling.retries import BROKEN, BUSY, CONNECT, REFUSED, SERVER, WRONG

log = structlog.get_logger()

ERROR_BODY_BYTES_MAX = 16 * 1024
ERROR_MESSAGE_CHARACTERS_MAX = 400
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
"""`Retry-After` as providers send it; its other form, a date, they don't."""
ANSWER_BYTES_MAX = 64 * 2**20
"""Bound of what an engine answers to a question about a prompt: its text, its tokens."""


class Engine(Protocol):
    """One place to send an attempt to: a replica of ours, or somebody else's API."""

    @property
    def replica_id(self) -> str | None:
        """The replica's id; None for an upstream."""

    async def open(self, chat: Chat, *, model: str, attempt_id: str, slot: Slot, is_prefix_reusable: bool) -> Response:
        """Start one streamed, single-choice call. Raises EngineFailed, TimedOut, Overloaded, InvalidRequest.

        model: its name over there (a replica serves only one and isn't asked for it).
        The response has status 200 and an unread body; closing it is how the call is cancelled.
        """

    async def count_input_tokens(self, chat: Chat) -> int | None:
        """Exactly how many tokens the prompt has, or None if this engine can't be asked."""

    async def close(self) -> None:
        """Close every connection."""


class UpstreamEngine:
    """An OpenAI-compatible upstream."""

    replica_id = None

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        output_cap_field: openai.OutputCapField,
        running_counts: openai.RunningCounts,
        connect_timeout_s: float,
    ) -> None:
        self._name = f"upstream {name!r}"
        self._path = f"{urlsplit(base_url).path}/chat/completions"
        self._output_cap_field: openai.OutputCapField = output_cap_field
        self._running_counts: openai.RunningCounts = running_counts
        self._client = HttpClient(
            origin_of(base_url), headers=headers, connect_timeout_s=connect_timeout_s, keep_alive=True
        )

    async def open(
        self,
        chat: Chat,
        *,
        model: str,
        attempt_id: str,
        slot: Slot,  # noqa: ARG002 its slots are its own
        is_prefix_reusable: bool,  # noqa: ARG002
    ) -> Response:
        """See Engine."""
        body = openai.encode(
            chat, model=model, output_cap_field=self._output_cap_field, running_counts=self._running_counts
        )
        return await _post(self._client, self._path, body, request_id=attempt_id, name=self._name)

    async def count_input_tokens(self, chat: Chat) -> int | None:  # noqa: ARG002
        """An upstream isn't asked."""
        return None

    async def close(self) -> None:
        """See Engine."""
        await self._client.close()


class ReplicaEngine:
    """One of our llama.cpp replicas, on its Unix socket."""

    def __init__(self, endpoint: ReplicaEndpoint, *, connect_timeout_s: float) -> None:
        self.replica_id = endpoint.replica_id
        self._name = f"replica {endpoint.replica_id} of {endpoint.deployment!r}"
        self._client = HttpClient(
            Origin("engine", unix_path=endpoint.socket_path),
            headers={"authorization": f"Bearer {endpoint.api_key}"},
            connect_timeout_s=connect_timeout_s,
            keep_alive=False,  # its HTTP threads are few and each open connection holds one
        )

    async def open(
        self,
        chat: Chat,
        *,
        model: str,  # noqa: ARG002 it has only one
        attempt_id: str,
        slot: Slot,
        is_prefix_reusable: bool,
    ) -> Response:
        """See Engine. A saved state meant for the slot is restored first; a reading that others may wait for can be cut."""
        if slot.copy is not None:
            is_prefix_reusable = await self._restore(slot, slot.copy) or is_prefix_reusable

        async def call() -> Response:
            body = llamacpp.encode(
                chat, slot=slot.number, is_prefix_reusable=is_prefix_reusable and not slot.is_unknown
            )
            return await _post(self._client, "/v1/chat/completions", body, request_id=attempt_id, name=self._name)

        reading = slot.reading
        if reading is None:
            return await call()
        first = await call()
        is_prefix_reusable = True  # when it is called again, what is in the slot is its own
        return LeadingResponse(first, slot, reading, save=partial(self._save, slot.number), reopen=call)

    async def _save(self, slot_number: int, name: str) -> llamacpp.SavedWire:
        answer = await self._ask(f"/slots/{slot_number}?action=save", llamacpp.encode_state_file(name))
        return llamacpp.decode_saved(answer)

    async def _restore(self, slot: Slot, copy: Copy) -> bool:
        """Put a saved state into a slot; False when that failed, and then the slot holds nothing."""
        assert slot.prefixes is not None, "only a replica's slots have copies"
        try:
            path = f"/slots/{slot.number}?action=restore"
            await uninterrupted(slot, self._ask(path, llamacpp.encode_state_file(copy.name)))
        except (PlatformError, TimeoutError) as error:
            slot.prefixes.counts.failed += 1
            slot.prefixes.forget(copy)
            log.warning("prefix_not_restored", replica=self.replica_id, slot=slot.number, reason=str(error))
            return False
        else:
            slot.prefixes.counts.restored += 1
            return True
        finally:
            slot.prefixes.restored(slot)

    async def count_input_tokens(self, chat: Chat) -> int | None:
        """Ask the engine to lay out the prompt with its template and count; about 3 ms."""
        prompt = await self._ask("/apply-template", llamacpp.encode_template(chat))
        tokens = await self._ask("/tokenize", llamacpp.encode_tokenize(llamacpp.decode_prompt(prompt).prompt))
        return len(llamacpp.decode_tokens(tokens).tokens)

    async def _ask(self, path: str, body: bytes) -> bytes:
        response = await _post(self._client, path, body, request_id=new_id(REQUEST), name=self._name)
        try:
            return await response.read_all(ANSWER_BYTES_MAX)
        except ConnectionBroken as error:
            raise EngineFailed(f"The {self._name} broke off: {error}.") from error
        finally:
            response.close()

    async def close(self) -> None:
        """See Engine."""
        await self._client.close()


async def _post(client: HttpClient, path: str, body: bytes, *, request_id: str, name: str) -> Response:
    """POST and return the response once its head says 200; anything else becomes our error."""
    try:
        response = await client.post(path, body, request_id=request_id)
    except ConnectTimedOut as error:
        raise TimedOut(f"No connection to the {name}: {error}.", fault=CONNECT) from error
    except ConnectionBroken as error:
        raise EngineFailed(f"The {name} broke off before it answered: {error}.", fault=BROKEN) from error
    except OSError as error:
        raise EngineFailed(f"The {name} can't be reached ({type(error).__name__}).", fault=CONNECT) from error
    if response.status == 200:
        return response
    try:
        answer = await response.read_all(ERROR_BODY_BYTES_MAX)
    except ConnectionBroken:
        answer = b""
    finally:
        response.close()
    raise refusal(response.status, answer, response.headers.get(b"retry-after", b"").decode("latin-1"), name)


class _ErrorObject(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject


def refusal(status: int, body: bytes, retry_after: str | None, name: str) -> PlatformError:
    """What an engine's refusal means to our caller. Pure.

    400, 413 and 422 are about the request, so the caller gets the engine's words (bounded); everything else is between
    us and the engine, and its words stay here: they may name our credential or its insides.
    """
    if status in (400, 413, 422):
        try:
            message = msgspec.json.decode(body, type=_ErrorBody).error.message[:ERROR_MESSAGE_CHARACTERS_MAX]
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = ""
        return InvalidRequest(
            f"The engine refused the request: {message or 'it gave no reason'}.", code="engine_refused", fault=WRONG
        )
    if status in (429, 503):
        wish_s = None if retry_after is None or not _SECONDS.fullmatch(retry_after) else float(retry_after)
        # A 429 that doesn't say for how long, such as one model's quota, says nothing about the whole upstream.
        fault = BUSY if wish_s is not None else SERVER if status == 503 else REFUSED
        return Overloaded(
            f"The {name} is overloaded (it answered {status}).",
            retry_after_s=min(5.0 if wish_s is None else wish_s, 3600.0),
            fault=fault,
        )
    return EngineFailed(f"The {name} answered with status {status}.", fault=SERVER if status >= 500 else REFUSED)
