import pytest

from headwater.ledger.charge import request_cost_nanos
from headwater.usage import Outcome, Usage
from tests.unit.ledger.settlements import PRICE

USAGE = Usage(uncached_input=1_000_000, output=1_000_000)


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("outcome", ["ok", "client_gone"])
def test_an_answer_given_or_left_is_paid_for(outcome: Outcome, is_stream: bool) -> None:
    assert request_cost_nanos([USAGE], PRICE, outcome=outcome, is_stream=is_stream) == 400_000_000


@pytest.mark.parametrize("outcome", ["upstream_error", "timeout", "rejected"])
def test_an_answer_that_was_never_given_is_free_and_a_broken_off_stream_is_not(outcome: Outcome) -> None:
    assert request_cost_nanos([USAGE], PRICE, outcome=outcome, is_stream=False) == 0
    assert request_cost_nanos([USAGE], PRICE, outcome=outcome, is_stream=True) == 400_000_000


@pytest.mark.parametrize("outcome", ["ok", "rejected"])
def test_without_a_price_there_is_no_cost_not_a_cost_of_0(outcome: Outcome) -> None:
    assert request_cost_nanos([USAGE], None, outcome=outcome, is_stream=False) is None
