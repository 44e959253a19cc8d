"""A cashier on a real ledger, for tests of what uses one; and the requests it is asked about."""

from pathlib import Path

from headwater.clock import Clock
from headwater.gateway.admission import Sized, input_tokens_bound, with_output_cap
from headwater.gateway.cashier import Cashier
from headwater.gateway.settle import Settler
from headwater.gateway.telemetry import Telemetry
from headwater.ledger import store
from headwater.ledger.load_book import load_book
from headwater.ledger.price_list import PriceList
from headwater.ledger.writer import LedgerWriter
from headwater.request import Chat, Principal, Request

PRINCIPAL = Principal(organization_id="org_1", project_id="prj_1", key_id="key_1")
EPOCH = 1


class HandClock:
    """A clock that stands still until it is turned."""

    def __init__(self, now_s: float) -> None:
        self.time_s = now_s

    def now_s(self) -> float:
        """See Clock."""
        return self.time_s

    def monotonic_s(self) -> float:
        """See Clock."""
        return self.time_s


def make_cashier(
    database: Path,
    writer: LedgerWriter,
    clock: Clock,
    *,
    is_unpriced_refused: bool = False,
    receivers: tuple[str, ...] = (),
) -> Cashier:
    """A cashier on what the database holds; the writer must have been started. Needs a running loop."""
    with_epoch = store.Write(store.INSERT_EPOCH, (EPOCH, "test", 1))
    writer.submit([with_epoch]).result(20)
    reader = store.open_reader(database)
    try:
        book = load_book(reader, keys_count_max=1000)
        prices = PriceList(store.read_prices(reader))
    finally:
        reader.close()
    return Cashier(
        book,
        Settler(writer),
        prices,
        database=database,
        epoch=EPOCH,
        currency="USD",
        is_unpriced_refused=is_unpriced_refused,
        receivers=receivers,
        telemetry=Telemetry(writer),
        clock=clock,
    )


def make_request(
    request_id: str, payload: Chat, *, now_s: float, is_stream: bool = False, tags: tuple[str, ...] = ()
) -> Request:
    """A request of `PRINCIPAL` for the model m."""
    return Request(
        id=request_id,
        principal=PRINCIPAL,
        model="m",
        deadline_s=now_s + 60,
        is_stream=is_stream,
        payload=payload,
        dialect="openai_chat",
        received_at_s=now_s,
        received_monotonic_s=now_s,
        tags=tags,
    )


def sized(payload: Chat, cap_tokens: int, *, is_stated: bool = True) -> Sized:
    """The payload with its output cap, its input bounded by bytes."""
    return Sized(
        with_output_cap(payload, cap_tokens), input_tokens_bound(payload), is_counted=False, is_stated=is_stated
    )
