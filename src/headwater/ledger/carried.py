"""What archived requests add up to, so that the cached sums stay provable when their rows have left the log. Pure.

For every account, grant and period of a budget: what `carried_sums` holds and what is still in the log together make
the cache. A request is the JSON object of one line of an archive (`archive_file.py`): its rows as the tables had them.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Archived = Mapping[str, Any]
"""request_id; record, reservation and resolution (an object or None); attempts and transfers (lists of objects)."""
Key = tuple[str, str]
"""(kind, name) as in `carried_sums`."""


def carried(requests: Iterable[Archived]) -> dict[Key, int]:
    """The sums of these requests in nanos, without those that are 0.

    ("balance", account): the legs on that account, signed. ("lot", grant id): what charges did to what remains of it, so
    it is negative; what expired or was revoked is not in it, since those transfers stay in the log. ("budget", "id period"):
    charges that count there.
    """
    sums: defaultdict[Key, int] = defaultdict(int)
    for request in requests:
        _add(sums, request)
    return {key: nanos for key, nanos in sorted(sums.items()) if nanos}


def _add(sums: defaultdict[Key, int], request: Archived) -> None:
    held, resolution = request["reservation"], request["resolution"]
    if held is not None and resolution is not None:  # what was held went back or was charged: `held` is 0 again
        charge_nanos = resolution["charge_nanos"]
        _move(sums, f"wallet/{held['organization_id']}", f"revenue/{held['model']}", charge_nanos)
        left_nanos = charge_nanos
        for grant_id, nanos in json.loads(held["lots"] or "[]"):
            spent_nanos = min(nanos, left_nanos)
            left_nanos -= spent_nanos
            sums["lot", grant_id] -= spent_nanos
        _count(sums, held, charge_nanos)
    for attempt in request["attempts"]:
        _move(sums, f"payable/{attempt['target']}", f"expense/{attempt['target']}", attempt.get("cost_nanos") or 0)
    for transfer in request["transfers"]:
        nanos, model, organization_id = transfer["amount_nanos"], transfer["model"], transfer["organization_id"]
        gives = "absorbed" if transfer["kind"] == "absorb" else "wallet"
        _move(sums, f"{gives}/{organization_id}", f"revenue/{model}", nanos)
        if transfer["kind"] == "late_post":
            for grant_id, taken_nanos in json.loads(transfer["note"] or "[]"):
                sums["lot", grant_id] -= taken_nanos
            if held is not None:
                _count(sums, held, nanos)


def _move(sums: defaultdict[Key, int], gives: str, takes: str, nanos: int) -> None:
    sums["balance", gives] -= nanos
    sums["balance", takes] += nanos


def _count(sums: defaultdict[Key, int], held: Mapping[str, Any], charge_nanos: int) -> None:
    for budget_id, period in json.loads(held["budgets"] or "[]"):
        sums["budget", f"{budget_id} {period}"] += charge_nanos
