"""How a receipt is printed for a person: so that each number can be worked out again with a pencil."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from headwater.cli.administering import iso

if TYPE_CHECKING:
    from headwater.ledger.receipt import AttemptPart, Receipt

_MARGIN = 13


def receipt_text(receipt: "Receipt", currency: str) -> str:
    """The receipt as lines of text. currency: the platform's, where the receipt names none."""
    currency = receipt.currency or currency
    lines = [
        *_who(receipt),
        *_usage(receipt),
        *(line for attempt in receipt.attempts for line in _attempt(attempt, currency)),
        *_price(receipt, currency),
        *_held(receipt, currency),
        *_entries(receipt),
        *(_fact("Note" if number == 0 else "", note) for number, note in enumerate(receipt.explanation)),
    ]
    return "\n".join(lines)


def _fact(name: str, value: object) -> str:
    return f"{name:<{_MARGIN}}{value}"


def _who(receipt: "Receipt") -> Iterator[str]:
    yield _fact("Request", f"{receipt.request_id}  {receipt.state}")
    if receipt.client_request_id is not None:
        yield _fact("", f"called {receipt.client_request_id} by its caller")
    yield _fact("Received", f"{iso(receipt.received_at_ms)}")
    yield _fact("Organization", f"{receipt.organization} ({receipt.organization_id})")
    yield _fact("Project", f"{receipt.project} ({receipt.project_id})")
    yield _fact("Key", f"{receipt.key} ({receipt.key_id})")
    kind = "streamed" if receipt.is_stream else "not streamed"
    choices = f", {receipt.choices_count} choices" if receipt.choices_count > 1 else ""
    tier = "" if receipt.service_tier == "standard" else f", service tier {receipt.service_tier}"
    yield _fact("Model", f"{receipt.model} ({receipt.dialect}, {kind}{choices}{tier})")
    if receipt.tags:
        yield _fact("Tags", " ".join(receipt.tags))
    if receipt.outcome is not None:
        error = "" if receipt.error_code is None else f" ({receipt.error_code})"
        times = f"queued {receipt.queue_ms} ms, {_first_token(receipt)}, ended after {receipt.duration_ms} ms"
        yield _fact("Outcome", f"{receipt.outcome}{error}: {times}")


def _usage(receipt: "Receipt") -> Iterator[str]:
    if receipt.usage is not None:
        usage = receipt.usage
        yield _fact(
            "Tokens",
            f"{usage.input:,} in ({usage.cache_read:,} cached, {usage.cache_write:,} written to a cache), "
            f"{usage.output:,} out ({usage.reasoning:,} reasoning); {receipt.usage_source}",
        )


def _attempt(attempt: "AttemptPart", currency: str) -> Iterator[str]:
    where = attempt.target if attempt.replica_id is None else f"{attempt.target}, replica {attempt.replica_id}"
    error = "" if attempt.error_code is None else f" ({attempt.error_code})"
    cost = "" if attempt.upstream_cost is None else f"; the upstream takes {attempt.upstream_cost} {currency}"
    yield _fact("Attempt", f"{attempt.id}  {where}: {attempt.outcome}{error} after {attempt.duration_ms} ms")
    if attempt.reason is not None:
        yield _fact("", f"why there: {attempt.reason}")
    yield _fact("", f"{attempt.usage.input:,} in, {attempt.usage.output:,} out, {attempt.usage_source}{cost}")
    if attempt.reported is not None:
        yield _fact("", f"it reported: {attempt.reported}")


def _price(receipt: "Receipt", currency: str) -> Iterator[str]:
    if receipt.price_id is None:
        yield _fact("Price", "none was known")
        return
    yield _fact(
        "Price", f"{receipt.price_id}, in force since {iso(receipt.price_effective_at_ms)}; {currency} per million"
    )
    width = max((len(line.what) for line in receipt.arithmetic), default=0)
    for line in receipt.arithmetic:
        yield _fact("", f"{line.what:<{width}}  {line.units:,} × {line.price_per_million} ÷ 1,000,000 = {line.amount}")
    if receipt.cost is not None:
        is_rounded = receipt.exact_sum not in (None, receipt.cost)
        rounded = f" ({receipt.exact_sum}, rounded half up to a billionth)" if is_rounded else ""
        yield _fact("Cost", f"{receipt.cost} {currency}{rounded}")
        absorbed = (
            "" if receipt.absorbed in (None, "0") else f"; {receipt.absorbed} {currency} is borne by the platform"
        )
        yield _fact("Charged", f"{receipt.charged} {currency}{absorbed}")


def _held(receipt: "Receipt", currency: str) -> Iterator[str]:
    held, resolution = receipt.reservation, receipt.resolution
    if held is None:
        return
    yield _fact("Held", f"{held.amount} {currency} until {iso(held.expires_at_ms)} (reservation {held.id})")
    for budget_id, scope, scope_id, period in held.budgets:
        yield _fact("", f"under budget {budget_id} of {scope} {scope_id}, period {period}")
    for grant_id, amount in held.credit:
        yield _fact("", f"from credit {grant_id}: {amount} {currency}")
    if resolution is not None:
        ended = {"post": "posted", "void": "voided", "expire": "expired"}[resolution.kind]
        yield _fact("Ended", f"{ended}, {resolution.charge} {currency} charged at {iso(resolution.resolved_at_ms)}")


def _entries(receipt: "Receipt") -> Iterator[str]:
    width = max((len(entry.account) for entry in receipt.entries), default=0)
    amounts = max((len(entry.amount) for entry in receipt.entries), default=0)
    for number, entry in enumerate(receipt.entries):
        name = "Entries" if number == 0 else ""
        yield _fact(name, f"{entry.kind:<12} {entry.account:<{width}}  {entry.amount:>{amounts}}")
    if receipt.entries:
        yield _fact("", f"{'sum':<12} {'':<{width}}  {receipt.entries_sum:>{amounts}}")


def _first_token(receipt: "Receipt") -> str:
    if receipt.ttft_ms is not None:
        return f"first token after {receipt.ttft_ms} ms"
    return "no token sent" if receipt.usage is None or not receipt.usage.output else "first token at an unknown time"
