"""Notices to real receivers on loopback: failing, slow, redirecting, gone, and across restarts of the sender."""

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.errors import ConfigError
from headwater.gateway import webhooks
from headwater.gateway.notices import notice, receiver_id
from headwater.gateway.telemetry import Telemetry
from headwater.gateway.webhooks import TRIES_MAX, Webhooks, retry_delay_s, signature, signing_key
from headwater.ledger import store
from headwater.ledger.caps import Spent
from headwater.ledger.notice_store import read_undelivered
from headwater.ledger.periods import BudgetTerms, period_at
from headwater.ledger.rows import NoticeRow
from headwater.ledger.store import Connection, Write, open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.settings.model import WebhookSettings
from headwater.settings.secret import Secret
from tests.rig.receiver import OK, Received, Receiver, take
from tests.unit.gateway.conftest import WAIT_S
from tests.unit.gateway.tills import HandClock

NOW_S = 1_793_923_200.0
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
TERMS = BudgetTerms("bud_1", "org_1", "project", "prj_1", 10**12, "month", None, 0, "UTC", (50, 80, 100))
HOUR_S = 3600.0
HOW_TO = Path(__file__).parents[3] / "docs" / "how-to" / "be-told-of-budgets.md"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW_S)


class Sender:
    """The sending side of a platform, which can be stopped and started again."""

    def __init__(self, database: Path, clock: HandClock, *urls: str) -> None:
        self._settings = [WebhookSettings(url=url, secret=Secret(SECRET)) for url in urls]
        self._database = database
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.writer = LedgerWriter(open_writer(self._database), on_fatal=lambda _: None)
        self.writer.start()
        self.telemetry = Telemetry(self.writer)
        self.webhooks = Webhooks(
            self._settings,
            database=self._database,
            writer=self.writer,
            telemetry=self.telemetry,
            clock=self._clock,
            jitter=lambda: 0.5,
        )
        self._task = asyncio.ensure_future(self.webhooks.run())

    async def stop(self) -> None:
        """As at a shutdown, or a crash: what is under way is cut."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
            await asyncio.to_thread(self.writer.close)

    async def write(self, *rows: NoticeRow) -> None:
        await asyncio.wrap_future(self.writer.submit([Write(store.INSERT_NOTICE, row) for row in rows]))
        self.webhooks.wake()

    def count(self, outcome: str) -> float:
        return self.telemetry.registry.get_sample_value("headwater_gateway_webhooks_total", {"outcome": outcome}) or 0


@pytest.fixture
async def sender(database: Path, clock: HandClock, receiver: Receiver) -> AsyncIterator[Sender]:
    made = Sender(database, clock, receiver.url)
    made.start()
    yield made
    await made.stop()


def rows_for(url: str, count: int = 1, *, now_s: float = NOW_S) -> list[NoticeRow]:
    """Notices of different thresholds."""
    now_ms = int(now_s * 1000)
    period = period_at(TERMS, now_ms)
    return [notice(Spent(TERMS, period, number + 1, 10**9), receiver_id(url), now_ms) for number in range(count)]


def stored(reader: Connection) -> dict[str, NoticeRow]:
    found = reader.execute(f"SELECT {', '.join(NoticeRow._fields)} FROM notices")
    return {row[0]: NoticeRow(*row) for row in found}


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what the sender's thread writes down; bounded."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.005)


# -- pure -----------------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    # From the test suite of the reference libraries of Standard Webhooks.
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", [SECRET, "correct horse"])
def test_the_documented_check_of_a_signature_takes_ours_and_no_other(secret: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Callable[[str, dict[str, str], bytes], bool]] = {}
    exec(code, names)  # noqa: S102 our own page
    is_genuine, now_s = names["is_genuine"], int(time.time())

    def headers(at_s: int, key: bytes) -> dict[str, str]:
        signed = signature(key, "evt_1", at_s, b"{}")
        return {"webhook-id": "evt_1", "webhook-timestamp": str(at_s), "webhook-signature": signed}

    good = headers(now_s, signing_key(secret))
    assert is_genuine(secret, good, b"{}")
    assert not is_genuine(secret, good, b"{ }")
    assert not is_genuine(secret, {**good, "webhook-id": "evt_2"}, b"{}")
    assert not is_genuine(secret, {**good, "webhook-timestamp": str(now_s - 1)}, b"{}")
    assert not is_genuine(secret, headers(now_s, b"another key"), b"{}")
    assert not is_genuine(secret, headers(now_s - 3_600, signing_key(secret)), b"{}")


def test_a_secret_is_base64_after_its_mark_and_otherwise_plain_text() -> None:
    assert signing_key(SECRET) == b"k" * 24
    assert signing_key("whsec_YWI") == signing_key("whsec_YWI=") == b"ab"
    assert signing_key("correct horse") == b"correct horse"
    for bad in ("whsec_", "whsec_a", "whsec_!!!!"):
        with pytest.raises(ValueError, match="whsec_"):
            signing_key(bad)


async def test_a_secret_that_can_be_no_key_stops_the_start_and_is_not_shown(
    database: Path, writer: LedgerWriter, clock: HandClock
) -> None:
    bad = [WebhookSettings(url="http://127.0.0.1/x", secret=Secret("whsec_not base64"))]
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 can't be used") as refused:
        Webhooks(bad, database=database, writer=writer, telemetry=Telemetry(writer), clock=clock)
    assert "not base64" not in str(refused.value).replace("is not base64", "")


def test_twelve_tries_are_spread_over_about_a_day() -> None:
    delays = [retry_delay_s(tries, 0.5) for tries in range(1, TRIES_MAX + 1)]
    assert delays[-1] is None
    waits = [delay for delay in delays if delay is not None]
    assert len(waits) == TRIES_MAX - 1
    assert waits == sorted(waits)
    assert waits[0] == 5
    assert 20 * HOUR_S < sum(waits) < 26 * HOUR_S


@given(tries=st.integers(1, 40), jitter=st.floats(0, 1))
def test_a_delay_is_near_its_schedule_and_none_after_the_last_try(tries: int, jitter: float) -> None:
    middle, delay = retry_delay_s(tries, 0.5), retry_delay_s(tries, jitter)
    if tries >= TRIES_MAX:
        assert delay is None
        return
    assert middle is not None
    assert delay is not None
    assert 0.79 * middle < delay < 1.21 * middle


# -- one receiver ---------------------------------------------------------------------------------------------------------


async def test_a_notice_is_posted_signed_and_marked_delivered(
    sender: Sender, receiver: Receiver, reader: Connection
) -> None:
    (row,) = rows_for(receiver.url)
    await sender.write(row)
    await until(lambda: stored(reader)[row.id].delivered_at_ms is not None)
    (got,) = receiver.received
    assert got.path == "/hooks/a%20b"
    assert got.headers["content-type"] == "application/json"
    assert got.body == row.body.encode()
    assert got.headers["webhook-id"] == row.id
    assert got.headers["webhook-timestamp"] == str(int(NOW_S))
    signed = f"{row.id}.{int(NOW_S)}.{row.body}".encode()
    wanted = base64.b64encode(hmac.new(b"k" * 24, signed, hashlib.sha256).digest()).decode()
    assert got.headers["webhook-signature"] == f"v1,{wanted}"
    assert stored(reader)[row.id][5:] == (1, None, int(NOW_S * 1000), None)
    await until(lambda: sender.count("delivered") == 1)
    assert (sender.count("failed"), sender.count("given_up")) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", "status 500"),
        (b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n", "redirects are not followed"),
        (b"HTTP/1.1 307 Again\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", "redirects are not"),
        (b"garbage\r\n\r\n", "what is not HTTP"),
        (None, "closed the connection"),
    ],
)
async def test_what_isnt_taken_is_tried_again_after_its_delay_and_not_before(
    sender: Sender, receiver: Receiver, reader: Connection, clock: HandClock, answer: bytes | None, reason: str
) -> None:
    async def refuse(_: Received) -> bytes | None:
        return answer

    receiver.respond = refuse
    (row,) = rows_for(receiver.url)
    await sender.write(row)
    await until(lambda: stored(reader)[row.id].tries_count == 1)
    after = stored(reader)[row.id]
    assert reason in (after.failure or "")
    assert after.next_try_at_ms == int((NOW_S + 5) * 1000)
    assert after.delivered_at_ms is None
    assert all(one.path == "/hooks/a%20b" for one in receiver.received)

    clock.time_s += 4.9
    sender.webhooks.wake()
    others = rows_for(receiver.url, 2)[1:]
    receiver.respond = take
    await sender.write(*others)  # which are taken; so the first was looked at, and left alone
    await until(lambda: stored(reader)[others[0].id].delivered_at_ms is not None)
    assert stored(reader)[row.id].tries_count == 1

    clock.time_s += 0.1
    sender.webhooks.wake()
    await until(lambda: stored(reader)[row.id].delivered_at_ms is not None)
    assert stored(reader)[row.id][5:] == (2, None, int(clock.time_s * 1000), None)
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 2  # the same id each time
    await until(lambda: (sender.count("failed"), sender.count("delivered")) == (1, 2))


async def test_what_nobody_takes_is_given_up_after_twelve_tries_over_a_day(
    sender: Sender, receiver: Receiver, reader: Connection, clock: HandClock
) -> None:
    await receiver.stop()  # nobody listens
    (row,) = rows_for(receiver.url)
    await sender.write(row)
    for tries in range(1, TRIES_MAX + 1):
        await until(lambda tries=tries: stored(reader)[row.id].tries_count == tries)  # type: ignore[misc]
        due_ms = stored(reader)[row.id].next_try_at_ms
        if due_ms is None:
            break
        clock.time_s = due_ms / 1000
        sender.webhooks.wake()
    last = stored(reader)[row.id]
    assert (last.tries_count, last.next_try_at_ms, last.delivered_at_ms) == (TRIES_MAX, None, None)
    assert "Connect" in (last.failure or "")
    assert 20 * HOUR_S < clock.time_s - NOW_S < 26 * HOUR_S
    await until(lambda: (sender.count("failed"), sender.count("given_up")) == (TRIES_MAX - 1, 1))

    clock.time_s += 1000 * HOUR_S
    await receiver.start()
    (other,) = rows_for(receiver.url, now_s=clock.time_s)
    await sender.write(other)
    await receiver.wait_for(1)
    assert {one.headers["webhook-id"] for one in receiver.received} == {other.id}


async def test_a_receiver_that_says_gone_is_not_asked_again(
    sender: Sender, receiver: Receiver, reader: Connection
) -> None:
    async def gone(_: Received) -> bytes:
        return b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"

    receiver.respond = gone
    (row,) = rows_for(receiver.url)
    await sender.write(row)
    await until(lambda: stored(reader)[row.id].tries_count == 1)
    assert stored(reader)[row.id].next_try_at_ms is None
    await until(lambda: sender.count("given_up") == 1)


async def test_a_receiver_that_says_nothing_is_a_failed_try(
    sender: Sender, receiver: Receiver, reader: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TRY_TIMEOUT_S", 0.05)
    never = asyncio.Event()

    async def hang(_: Received) -> bytes | None:
        await never.wait()
        return None

    receiver.respond = hang
    (row,) = rows_for(receiver.url)
    await sender.write(row)
    await until(lambda: stored(reader)[row.id].tries_count == 1)
    assert stored(reader)[row.id].failure == "no answer within 0.05 s"


async def test_many_notices_are_all_sent_a_few_at_once(sender: Sender, receiver: Receiver, reader: Connection) -> None:
    under_way, most = 0, 0

    async def count(_: Received) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return OK

    receiver.respond = count
    await sender.write(*rows_for(receiver.url, 50))
    await until(lambda: all(row.delivered_at_ms is not None for row in stored(reader).values()))
    assert len(receiver.received) == 50
    assert most <= webhooks.AT_ONCE_COUNT


# -- several receivers ----------------------------------------------------------------------------------------------------


async def test_one_that_hangs_keeps_no_other_waiting(database: Path, clock: HandClock, reader: Connection) -> None:
    slow, quick = Receiver(), Receiver()
    await slow.start()
    await quick.start()
    never = asyncio.Event()

    async def hang(_: Received) -> bytes | None:
        await never.wait()
        return None

    slow.respond = hang
    sender = Sender(database, clock, slow.url, quick.url)
    sender.start()
    try:
        rows = rows_for(quick.url, 20)
        await sender.write(*rows_for(slow.url, 20), *rows)
        await until(lambda: all(stored(reader)[row.id].delivered_at_ms is not None for row in rows))
        assert {one.headers["webhook-id"] for one in quick.received} == {row.id for row in rows}
        assert 0 < len(slow.received) <= webhooks.AT_ONCE_COUNT
    finally:
        await sender.stop()
        await slow.stop()
        await quick.stop()


async def test_what_was_for_a_webhook_no_longer_configured_is_given_up(
    database: Path, clock: HandClock, receiver: Receiver, reader: Connection
) -> None:
    sender = Sender(database, clock, receiver.url)
    sender.start()
    mine, foreign = rows_for(receiver.url)[0], rows_for("http://127.0.0.1:9/gone")[0]
    await sender.write(foreign)
    await sender.stop()
    sender.start()
    await sender.write(mine)
    await until(lambda: stored(reader)[mine.id].delivered_at_ms is not None)
    await sender.stop()
    assert stored(reader)[foreign.id].next_try_at_ms is None
    assert stored(reader)[foreign.id].failure == "its webhook is no longer configured"
    assert [one.headers["webhook-id"] for one in receiver.received] == [mine.id]


# -- restarts -------------------------------------------------------------------------------------------------------------


async def test_a_try_cut_by_a_crash_is_made_again_with_the_same_id(
    database: Path, clock: HandClock, receiver: Receiver, reader: Connection
) -> None:
    never = asyncio.Event()

    async def hang(_: Received) -> bytes | None:
        await never.wait()
        return None

    receiver.respond = hang
    sender = Sender(database, clock, receiver.url)
    sender.start()
    (row,) = rows_for(receiver.url)
    await sender.write(row)
    await receiver.wait_for(1)
    await sender.stop()
    assert stored(reader)[row.id].tries_count == 0
    receiver.respond = take
    sender.start()
    await receiver.wait_for(2)
    await until(lambda: stored(reader)[row.id].delivered_at_ms is not None)
    await sender.stop()
    assert [one.headers["webhook-id"] for one in receiver.received] == [row.id, row.id]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_none_is_lost_by_a_receiver_that_fails_and_dies_and_a_sender_that_restarts(
    database: Path, clock: HandClock, receiver: Receiver, reader: Connection, seed: int
) -> None:
    random = Random(seed)

    async def moody(_: Received) -> bytes | None:
        drawn = random.random()
        if drawn < 0.3:
            return random.choice([None, b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"])
        if drawn < 0.4:
            await asyncio.sleep(0.002)
        return OK

    receiver.respond = moody
    sender = Sender(database, clock, receiver.url)
    sender.start()
    rows = rows_for(receiver.url, 60)
    left, restarts_count = list(rows), 0
    async with asyncio.timeout(60):
        while left or restarts_count < 4 or read_undelivered(reader):
            await sender.write(*(left.pop() for _ in range(min(len(left), random.randrange(6)))))
            await asyncio.sleep(random.random() * 0.01)
            clock.time_s += random.random() * 20
            sender.webhooks.wake()
            if restarts_count < 12 and random.random() < 0.3:
                restarts_count += 1
                await sender.stop()
                if random.random() < 0.4:
                    await receiver.stop()
                    await receiver.start()
                sender.start()
    await sender.stop()
    after = stored(reader)
    assert {row.id for row in rows} == set(after)
    given_up = {row.id for row in after.values() if row.delivered_at_ms is None}
    assert {row.id for row in rows} - given_up <= set(receiver.taken)
    assert all(after[one].tries_count == TRIES_MAX for one in given_up)
    assert all(row.tries_count <= TRIES_MAX and row.next_try_at_ms is None for row in after.values())
    asked = [one.headers["webhook-id"] for one in receiver.received]
    assert max(asked.count(row.id) for row in rows) <= TRIES_MAX + restarts_count  # a cut try isn't counted


async def test_when_the_ledger_is_gone_sending_stops_quietly(
    database: Path, clock: HandClock, receiver: Receiver, reader: Connection
) -> None:
    sender = Sender(database, clock, receiver.url)
    sender.start()
    (row,) = rows_for(receiver.url)
    await sender.write(row)
    await until(lambda: stored(reader)[row.id].delivered_at_ms is not None)
    (other,) = rows_for(receiver.url, 2)[1:]
    await asyncio.wrap_future(sender.writer.submit([Write(store.INSERT_NOTICE, other)]))
    await asyncio.to_thread(sender.writer.close)
    sender.webhooks.wake()
    assert sender._task is not None
    await asyncio.wait_for(sender._task, WAIT_S)
    assert stored(reader)[other.id].tries_count == 0  # sent, perhaps, but not written down: it is sent again
    await sender.stop()


async def test_books_that_cant_be_read_end_the_run_and_the_next_one_sends_what_is_left(
    database: Path, clock: HandClock, receiver: Receiver, reader: Connection
) -> None:
    sender = Sender(database, clock, receiver.url)
    sender.start()
    first, second = rows_for(receiver.url, 2)
    await sender.write(first)
    await until(lambda: stored(reader)[first.id].delivered_at_ms is not None)
    sender.webhooks._database = database.with_name("elsewhere.db")
    await sender.write(second)
    assert sender._task is not None
    await asyncio.wait([sender._task], timeout=WAIT_S)
    assert isinstance(sender._task.exception(), ExceptionGroup)
    sender.webhooks._database = database
    again = asyncio.ensure_future(sender.webhooks.run())
    await until(lambda: stored(reader)[second.id].delivered_at_ms is not None)
    again.cancel()
    await asyncio.wait([again])
    await sender.stop()


async def test_the_address_is_in_no_log_line_since_it_may_be_a_secret(
    database: Path, clock: HandClock, receiver: Receiver, reader: Connection
) -> None:
    answers = [b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", OK]

    async def second_time(_: Received) -> bytes:
        return answers.pop(0)

    receiver.respond = second_time
    with capture_logs() as logs:
        sender = Sender(database, clock, receiver.url)
        sender.start()
        (row,) = rows_for(receiver.url)
        await sender.write(row)
        await until(lambda: stored(reader)[row.id].tries_count == 1)
        clock.time_s += 10
        sender.webhooks.wake()
        await until(lambda: len(logs) == 2)
        await sender.stop()
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("webhook_failed", "warning"),
        ("webhook_delivered", "info"),
    ]
    assert "hooks" not in str(logs)
    assert SECRET not in str(logs)
    assert "hooks" not in str(stored(reader))
