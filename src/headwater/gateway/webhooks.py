"""Notices on their way out: each is posted to its receiver, signed, until it is taken or given up.

A notice is on the disk before it is sent and marked delivered after: it arrives at least once, whatever crashes, and
a receiver knows a repeated one by its `webhook-id`. Each receiver is served by a task of its own, so that one that is
slow or gone keeps nobody else waiting. No redirect is followed. Source: Standard Webhooks 1.0.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import structlog

from headwater.clock import Clock
from headwater.errors import ConfigError
from headwater.gateway.http_client import ConnectionBroken, ConnectTimedOut, HttpClient, Origin, origin_of
from headwater.gateway.notices import receiver_id, receiver_of
from headwater.gateway.telemetry import Telemetry
from headwater.ledger import store
from headwater.ledger.notice_store import RECORD_TRY, Pending, read_pending, read_undelivered
from headwater.ledger.rows import NoticeRow
from headwater.ledger.writer import LedgerFailed, LedgerWriter
from headwater.settings.model import WebhookSettings

log = structlog.get_logger()

TRIES_MAX = 12
DELAY_FIRST_S, DELAY_FACTOR, DELAY_MAX_S = 5.0, 3.0, 6 * 3600.0
"""5 s, 15 s, 45 s … 3 h, then every 6 h: twelve tries in about 23 hours."""
JITTER = 0.2
"""Each delay is up to a fifth shorter or longer, so that receivers which failed together aren't asked together."""
CONNECT_TIMEOUT_S = 5.0
TRY_TIMEOUT_S = 15.0
AT_ONCE_COUNT = 8
"""Notices on their way to one receiver at once."""
IDLE_S = 60.0
"""The books are looked at this often even when nobody says that there is something new."""
GONE = 410
_SECRET_PREFIX = "whsec_"  # noqa: S105 the mark of a secret, not one
_PATH_SAFE = "/%:@!$&'()*+,;=~"


def signing_key(secret: str) -> bytes:
    """The key of a secret: `whsec_` and base64 (its padding may be missing), else the text itself. Raises ValueError."""
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode()
    text = secret.removeprefix(_SECRET_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"what follows {_SECRET_PREFIX} is not base64") from error
    if not key:
        raise ValueError(f"nothing follows {_SECRET_PREFIX}")
    return key


def signature(key: bytes, notice_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`: HMAC-SHA256 over id, timestamp and body with dots between, in base64."""
    signed = b"%s.%d.%s" % (notice_id.encode(), timestamp_s, body)
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def retry_delay_s(tries_count: int, jitter: float) -> float | None:
    """How long to wait after so many tries have failed; None to give up. jitter: 0 to 1, where in its span."""
    if tries_count >= TRIES_MAX:
        return None
    delay_s = min(DELAY_MAX_S, DELAY_FIRST_S * DELAY_FACTOR ** (tries_count - 1))
    return delay_s * (1 - JITTER + 2 * JITTER * jitter)


class Failure(NamedTuple):
    """Why a try failed; is_final: the receiver wants no more of it."""

    reason: str
    is_final: bool = False


class _Receiver:
    """One address with its key. host: what may be said of the address in a log, the rest may be a secret."""

    def __init__(self, settings: WebhookSettings) -> None:
        parts = urlsplit(settings.url)
        self.id = receiver_id(settings.url)
        self.host = parts.hostname or ""
        self.path = quote(parts.path or "/", safe=_PATH_SAFE)
        self.origin: Origin = origin_of(settings.url)
        self.woken = asyncio.Event()
        try:
            self.key = signing_key(settings.secret.reveal())
        except ValueError as error:
            raise ConfigError(
                f"The secret of the webhook at {self.host} can't be used: {error}.",
                now=f"Give it as `{_SECRET_PREFIX}` and base64, or as any other text.",
            ) from None


class Webhooks:
    """Sends what is in the table `notices`. Made on the event loop; `run()` is its one task."""

    def __init__(
        self,
        settings: Sequence[WebhookSettings],
        *,
        database: Path,
        writer: LedgerWriter,
        telemetry: Telemetry,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """jitter: numbers from 0 to 1. Raises ConfigError when a secret can't be a key."""
        self._receivers = [_Receiver(one) for one in settings]
        self._database = database
        self._writer = writer
        self._telemetry = telemetry
        self._clock = clock
        self._jitter = jitter

    def wake(self) -> None:
        """There is something new to send. Call on the event loop, once it is on the disk."""
        for receiver in self._receivers:
            receiver.woken.set()

    async def run(self) -> None:
        """Send what is due, for ever; cancel it to stop. A try that is cut off so is made again by the next run.

        Raises what went wrong when the books can't be read; run it again then.
        """
        try:
            await self._give_up_orphans()
            async with asyncio.TaskGroup() as group:
                for receiver in self._receivers:
                    group.create_task(self._serve(receiver))
        except* LedgerFailed:
            pass  # `ledger_failed` is logged and the process is stopping; the next start sends what is left

    async def _serve(self, receiver: _Receiver) -> None:
        while True:
            receiver.woken.clear()
            pending = await asyncio.to_thread(self._read, receiver.id)
            if pending.due:
                await asyncio.gather(*(self._try(receiver, one) for one in pending.due))
                continue
            wait_s = IDLE_S
            if pending.next_try_at_ms is not None:
                wait_s = min(IDLE_S, max(0.0, pending.next_try_at_ms / 1000 - self._clock.now_s()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await receiver.woken.wait()

    def _read(self, receiver: str) -> Pending:
        with contextlib.closing(store.open_reader(self._database)) as reader:
            return read_pending(reader, receiver, now_ms=self._now_ms(), count_max=AT_ONCE_COUNT)

    async def _try(self, receiver: _Receiver, notice: NoticeRow) -> None:
        """Send one notice once, and write down how that went."""
        failure = await self._post(receiver, notice)
        tries_count, now_ms = notice.tries_count + 1, self._now_ms()
        if failure is None:
            await self._record(notice, tries_count, None, now_ms, None)
            self._telemetry.webhooks.labels("delivered").inc()
            log.info("webhook_delivered", notice=notice.id, host=receiver.host, tries_count=tries_count)
            return
        delay_s = None if failure.is_final else retry_delay_s(tries_count, self._jitter())
        next_try_at_ms = None if delay_s is None else now_ms + int(delay_s * 1000)
        await self._record(notice, tries_count, next_try_at_ms, None, failure.reason)
        self._failed(notice, receiver.host, tries_count, failure.reason, next_try_at_ms)

    async def _post(self, receiver: _Receiver, notice: NoticeRow) -> Failure | None:
        """Send it; None when the receiver took it (2xx)."""
        body, timestamp_s = notice.body.encode(), int(self._clock.now_s())
        headers = {
            "webhook-id": notice.id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature(receiver.key, notice.id, timestamp_s, body),
        }
        client: HttpClient | None = None
        try:
            client = HttpClient(receiver.origin, headers=headers, connect_timeout_s=CONNECT_TIMEOUT_S, keep_alive=False)
            async with asyncio.timeout(TRY_TIMEOUT_S):
                response = await client.post(receiver.path, body, request_id=notice.id)
        except ConnectTimedOut as error:
            return Failure(str(error))
        except TimeoutError:
            return Failure(f"no answer within {TRY_TIMEOUT_S:g} s")
        except (ConnectionBroken, OSError, UnicodeError) as error:  # the last: a host that can't be a name
            return Failure(f"{type(error).__name__}: {error}")
        finally:
            if client is not None:
                await client.close()
        if 200 <= response.status < 300:
            return None
        if 300 <= response.status < 400:
            return Failure(f"status {response.status}: redirects are not followed")
        return Failure(f"status {response.status}", is_final=response.status == GONE)

    async def _give_up_orphans(self) -> None:
        """End the notices of receivers that are no longer in the configuration."""
        known = {receiver.id for receiver in self._receivers}
        for notice in await asyncio.to_thread(self._read_undelivered):
            if receiver_of(notice) not in known:
                reason = "its webhook is no longer configured"
                await self._record(notice, notice.tries_count, None, None, reason)
                self._failed(notice, None, notice.tries_count, reason, None)

    def _read_undelivered(self) -> list[NoticeRow]:
        with contextlib.closing(store.open_reader(self._database)) as reader:
            return read_undelivered(reader)

    async def _record(
        self,
        notice: NoticeRow,
        tries_count: int,
        next_try_at_ms: int | None,
        delivered_at_ms: int | None,
        failure: str | None,
    ) -> None:
        row = (notice.id, tries_count, next_try_at_ms, delivered_at_ms, failure)
        await asyncio.wrap_future(self._writer.submit([store.Write(RECORD_TRY, row)]))

    def _failed(
        self, notice: NoticeRow, host: str | None, tries_count: int, failure: str, next_try_at_ms: int | None
    ) -> None:
        self._telemetry.webhooks.labels("given_up" if next_try_at_ms is None else "failed").inc()
        level = log.error if next_try_at_ms is None else log.warning
        level(
            "webhook_failed",
            notice=notice.id,
            host=host,
            tries_count=tries_count,
            failure=failure,
            next_try_at_ms=next_try_at_ms,
        )

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)
