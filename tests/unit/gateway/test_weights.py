"""Weights: 1 for everybody but those an operator gave another."""

from headwater.gateway.weights import Weights
from headwater.ledger.limit_store import SET_KEY_WEIGHT, SET_ORGANIZATION_WEIGHT
from headwater.ledger.store import Connection, Write
from headwater.ledger.writer import LedgerWriter


def test_everybody_weighs_one_until_told_otherwise() -> None:
    weights = Weights()
    assert (weights.organization("org_1"), weights.key("key_1")) == (1, 1)
    weights.set_organization("org_1", 4)
    weights.set_key("key_1", 7)
    assert (weights.organization("org_1"), weights.key("key_1")) == (4, 7)
    assert (weights.organization("org_2"), weights.key("key_2")) == (1, 1)
    weights.set_organization("org_1", 1)
    weights.set_key("key_1", 1)
    assert (weights.organization("org_1"), weights.key("key_1")) == (1, 1)


def test_a_start_takes_them_from_the_store(writer: LedgerWriter, reader: Connection) -> None:
    writer.start()
    writer.submit([Write(SET_ORGANIZATION_WEIGHT, ("org_1", 4)), Write(SET_KEY_WEIGHT, ("key_1", 9))]).result(20)
    weights = Weights()
    weights.load(reader)
    assert (weights.organization("org_1"), weights.key("key_1")) == (4, 9)
