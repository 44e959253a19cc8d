"""Step 9: the calls we make to engines and upstreams, over aiohttp; what to say is decided by the adapters in `engines/`.

Redirects are never followed and cookies never kept: a credential goes to the configured origin only.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

import aiohttp
import msgspec

from headwater.engines import llamacpp, openai
from headwater.errors import EngineFailed, InvalidRequest, Overloaded, PlatformError, TimedOut
from headwater.gateway.slots import Slot
from headwater.replica import ReplicaEndpoint
from headwater.request import Chat

ERROR_BODY_BYTES_MAX = 16 * 1024
ERROR_MESSAGE_CHARACTERS_MAX = 400
READ_BUFFER_BYTES = 64 * 1024
KEEP_ALIVE_S = 4.0
"""Common servers close an idle connection after 5 s; reusing one just then would lose a request."""


class Engine(Protocol):
    """One place to send an attempt to: a replica of ours, or somebody else's API."""

    @property
    def replica_id(self) -> str | None:
        """The replica's id; None for an upstream."""

    async def open(
        self, chat: Chat, *, model: str, attempt_id: str, slot: Slot, is_prefix_reusable: bool
    ) -> aiohttp.ClientResponse:
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
        self._url = f"{base_url}/chat/completions"
        self._headers = dict(headers)
        self._output_cap_field: openai.OutputCapField = output_cap_field
        self._running_counts: openai.RunningCounts = running_counts
        self._session = _session(
            aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEEP_ALIVE_S), connect_timeout_s
        )

    async def open(
        self,
        chat: Chat,
        *,
        model: str,
        attempt_id: str,
        slot: Slot,  # noqa: ARG002 its slots are its own
        is_prefix_reusable: bool,  # noqa: ARG002
    ) -> aiohttp.ClientResponse:
        """See Engine."""
        body = openai.encode(
            chat, model=model, output_cap_field=self._output_cap_field, running_counts=self._running_counts
        )
        return await _post(self._session, self._url, body, {**self._headers, "x-request-id": attempt_id}, self._name)

    async def count_input_tokens(self, chat: Chat) -> int | None:  # noqa: ARG002
        """An upstream isn't asked."""
        return None

    async def close(self) -> None:
        """See Engine."""
        await self._session.close()


class ReplicaEngine:
    """One of our llama.cpp replicas, on its Unix socket."""

    def __init__(self, endpoint: ReplicaEndpoint, *, connect_timeout_s: float) -> None:
        self.replica_id = endpoint.replica_id
        self._name = f"replica {endpoint.replica_id} of {endpoint.deployment!r}"
        self._headers = {"authorization": f"Bearer {endpoint.api_key}"}
        # Its HTTP threads are few and each open connection holds one: none is kept idle.
        connector = aiohttp.UnixConnector(path=str(endpoint.socket_path), limit=0, force_close=True)
        self._session = _session(connector, connect_timeout_s)

    async def open(
        self,
        chat: Chat,
        *,
        model: str,  # noqa: ARG002 it has only one
        attempt_id: str,
        slot: Slot,
        is_prefix_reusable: bool,
    ) -> aiohttp.ClientResponse:
        """See Engine."""
        body = llamacpp.encode(chat, slot=slot.number, is_prefix_reusable=is_prefix_reusable)
        headers = {**self._headers, "x-request-id": attempt_id}
        return await _post(self._session, "http://engine/v1/chat/completions", body, headers, self._name)

    async def count_input_tokens(self, chat: Chat) -> int | None:
        """Ask the engine to lay out the prompt with its template and count; about 3 ms."""
        prompt = await self._ask("/apply-template", llamacpp.encode_template(chat))
        tokens = await self._ask("/tokenize", llamacpp.encode_tokenize(llamacpp.decode_prompt(prompt).prompt))
        return len(llamacpp.decode_tokens(tokens).tokens)

    async def _ask(self, path: str, body: bytes) -> bytes:
        response = await _post(self._session, f"http://engine{path}", body, self._headers, self._name)
        try:
            return await response.read()
        except aiohttp.ClientError as error:
            raise EngineFailed(f"The {self._name} broke off: {type(error).__name__}.") from error

    async def close(self) -> None:
        """See Engine."""
        await self._session.close()


def _session(connector: aiohttp.BaseConnector, connect_timeout_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        # First byte, idle and total time-outs are the life's own; aiohttp keeps the one it alone can see.
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("user-agent", "accept-encoding", "accept"),
        headers={"content-type": "application/json"},
        read_bufsize=READ_BUFFER_BYTES,
        trust_env=False,
    )


async def _post(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str], name: str
) -> aiohttp.ClientResponse:
    """POST and return the response once its head says 200; anything else becomes our error."""
    try:
        response = await session.post(url, data=body, headers=headers, allow_redirects=False)
    except aiohttp.ConnectionTimeoutError as error:
        raise TimedOut(f"No connection to the {name} within the connect time-out.") from error
    except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise EngineFailed(f"The {name} can't be reached or broke off ({type(error).__name__}).") from error
    if response.status == 200:
        return response
    try:
        answer = await response.content.read(ERROR_BODY_BYTES_MAX)
    except (aiohttp.ClientError, OSError):
        answer = b""
    finally:
        response.close()
    raise refusal(response.status, answer, response.headers.get("retry-after"), name)


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
            f"The engine refused the request: {message or 'it gave no reason'}.", code="engine_refused"
        )
    if status in (429, 503):
        seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else 5.0
        return Overloaded(f"The {name} is overloaded (it answered {status}).", retry_after_s=min(seconds, 3600.0))
    return EngineFailed(f"The {name} answered with status {status}.")
