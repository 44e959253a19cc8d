from typing import Any

from headwater.ledger.carried import carried


def request(**parts: Any) -> dict[str, Any]:
    return {
        "request_id": "req_1",
        "record": None,
        "attempts": [],
        "reservation": None,
        "resolution": None,
        "transfers": [],
        **parts,
    }


HELD = {
    "organization_id": "o",
    "model": "m",
    "amount_nanos": 100,
    "budgets": '[["b","2026-11"],["c","total"]]',
    "lots": '[["g",30],["h",50]]',
}


def test_a_charge_is_taken_from_the_lots_in_order_and_counts_in_each_cap() -> None:
    assert carried([request(reservation=HELD, resolution={"charge_nanos": 40})]) == {
        ("balance", "revenue/m"): 40,
        ("balance", "wallet/o"): -40,
        ("budget", "b 2026-11"): 40,
        ("budget", "c total"): 40,
        ("lot", "g"): -30,
        ("lot", "h"): -10,
    }


def test_a_void_adds_up_to_nothing() -> None:
    assert carried([request(reservation=HELD, resolution={"charge_nanos": 0})]) == {}


def test_late_and_absorbed_amounts_and_upstream_costs() -> None:
    late = {"kind": "late_post", "organization_id": "o", "model": "m", "amount_nanos": 7, "note": '[["h",5]]'}
    borne = {"kind": "absorb", "organization_id": "o", "model": "m", "amount_nanos": 9, "note": None}
    attempts = [{"target": "acme/large", "cost_nanos": 3}, {"target": "own", "cost_nanos": None}]
    sums = carried(
        [request(reservation=HELD, resolution={"charge_nanos": 0}, transfers=[late, borne], attempts=attempts)]
    )
    assert sums == {
        ("balance", "absorbed/o"): -9,
        ("balance", "expense/acme/large"): 3,
        ("balance", "payable/acme/large"): -3,
        ("balance", "revenue/m"): 16,
        ("balance", "wallet/o"): -7,
        ("budget", "b 2026-11"): 7,
        ("budget", "c total"): 7,
        ("lot", "h"): -5,
    }
    assert sum(nanos for (kind, _), nanos in sums.items() if kind == "balance") == 0
