"""Prices and costs as an operator handles them: versions with a date from which they are in force.

A price is what callers pay for a model, a cost what an upstream takes for it. A version is never changed: an update is a
new one, archiving a version that says that there is none from then on. A model that the configuration file prices is
left to that file, which would undo anything else at the next start.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from headwater.admin import finding
from headwater.admin.administration import Administration, Verb
from headwater.admin.checks import check_currency, end_ms, moment_text
from headwater.admin.price_terms import PriceTerms, next_price_id, priced
from headwater.errors import OperatorError
from headwater.ids import PRICE
from headwater.ledger import store
from headwater.ledger.price_list import PriceList
from headwater.ledger.store import PriceKind, PriceSource, PriceVersion, Write
from headwater.money import Price

PriceState = Literal["in force", "scheduled", "past"]


class CreatePrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for the first price of a model. effective_at_ms None: from now on; is_cost: what an upstream takes.

    currency: ISO 4217; None: the platform's. It is the price of organizations of that currency.
    """

    model: str
    terms: PriceTerms
    currency: str | None = None
    effective_at_ms: int | None = None
    is_cost: bool = False


class UpdatePrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for a new version, found as `CreatePrice`; what the terms don't set is as in the version before."""

    model: str
    terms: PriceTerms
    effective_at_ms: int | None = None
    is_cost: bool = False


class ImportPrices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for versions of many models at once, all or none; the prices' ids are given here."""

    prices: list[Price]
    effective_at_ms: int | None = None
    is_cost: bool = False


class ListPrices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see the prices and costs in force; with_all: every version, past and scheduled ones too."""

    with_all: bool = False


class ShowPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every version of one model's price or cost."""

    model: str
    is_cost: bool = False


class ArchivePrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish that a model has no price (or cost) from then on."""

    model: str
    effective_at_ms: int | None = None
    is_cost: bool = False


class PriceView(msgspec.Struct, frozen=True):
    """One version as people see it. is_withdrawn: it says that there is no price from then on."""

    price: Price
    kind: PriceKind
    source: PriceSource
    state: PriceState
    is_withdrawn: bool
    created_at_ms: int
    effective_at_ms: int


def _create(administration: Administration, wish: CreatePrice) -> PriceView:
    kind = _kind(wish.is_cost)
    _check_model(administration, wish.model, kind)
    known = administration.read(store.read_prices)
    at_ms = _effective(administration, wish.effective_at_ms)
    there = PriceList(known).in_force(wish.model, at_ms, kind)
    if there is not None and not there.is_withdrawn and there.source == "admin":
        raise OperatorError(
            f"The model {wish.model!r} has a {kind} already.",
            why=f"It is {there.price.id}, in force from {moment_text(there.effective_at_ms)}.",
            now=f"Change it with `headwater prices update {wish.model}{' --cost' if wish.is_cost else ''}`.",
        )
    currency = administration.currency if wish.currency is None else check_currency(wish.currency)
    price = priced(wish.model, currency, wish.terms)
    return _publish(administration, known, [price], kind, at_ms, "create")[0]


def _update(administration: Administration, wish: UpdatePrice) -> PriceView:
    kind = _kind(wish.is_cost)
    _check_model(administration, wish.model, kind)
    known = administration.read(store.read_prices)
    at_ms = _effective(administration, wish.effective_at_ms)
    before = _in_force(known, wish.model, kind, at_ms)
    price = priced(wish.model, before.price.currency, wish.terms, before=before.price)
    return _publish(administration, known, [price], kind, at_ms, "update")[0]


def _import(administration: Administration, wish: ImportPrices) -> list[PriceView]:
    """Publish them all; a price that is in force as it is makes no new version. Answers with what was published."""
    kind = _kind(wish.is_cost)
    for price in wish.prices:
        _check_model(administration, price.model, kind)
        if price.currency != administration.currency:
            raise OperatorError(
                f"The price of {price.model!r} is in {price.currency}, the platform's currency is {administration.currency}.",
                why="Prices are not converted: nobody here knows the rate.",
                now="Give the prices in the platform's currency with `headwater prices create`.",
            )
    if len({price.model for price in wish.prices}) < len(wish.prices):
        raise OperatorError("A model is in the import twice.", now="Map each of your models to one entry.")
    known = administration.read(store.read_prices)
    at_ms = _effective(administration, wish.effective_at_ms)
    in_force = PriceList(known)
    fresh = []
    for price in wish.prices:
        there = in_force.in_force(price.model, at_ms, kind)
        is_same = there is not None and msgspec.structs.replace(there.price, id=price.id) == price
        if there is None or there.is_withdrawn or there.source == "config" or not is_same:
            fresh.append(price)
    return _publish(administration, known, fresh, kind, at_ms, "import") if fresh else []


def _list(administration: Administration, wish: ListPrices) -> list[PriceView]:
    views = _views(administration, administration.read(store.read_prices))
    return [view for view in views if wish.with_all or (view.state == "in force" and not view.is_withdrawn)]


def _show(administration: Administration, wish: ShowPrice) -> list[PriceView]:
    """Every version of one model, the newest last."""
    kind = _kind(wish.is_cost)
    versions = administration.read(store.read_prices)
    found = [one for one in versions if one.price.model == wish.model and one.kind == kind]
    if not found:
        raise _unknown(versions, wish.model, kind)
    return _views(administration, found)


def _archive(administration: Administration, wish: ArchivePrice) -> PriceView:
    """From then on the model has none: its use is recorded as unpriced, or refused (`billing.unpriced`)."""
    kind = _kind(wish.is_cost)
    _refuse_priced_in_file(administration, wish.model, kind)
    known = administration.read(store.read_prices)
    at_ms = _effective(administration, wish.effective_at_ms)
    gone = _in_force(known, wish.model, kind, at_ms).price
    return _publish(administration, known, [gone], kind, at_ms, "archive", is_withdrawn=True)[0]


def _publish(
    administration: Administration,
    known: Sequence[PriceVersion],
    prices: Sequence[Price],
    kind: PriceKind,
    at_ms: int,
    verb: str,
    *,
    is_withdrawn: bool = False,
) -> list[PriceView]:
    """Write new versions and make them known; each has an id above all there were, since of one date the last counts."""
    now_ms = administration.now_ms
    last = max((version.price.id for version in known), default=PRICE)
    writes: list[Write] = []
    ids: set[str] = set()
    for price in prices:
        last = next_price_id(last)
        ids.add(last)
        version = msgspec.structs.replace(price, id=last)
        writes += [
            store.price_write(
                version, now_ms, kind=kind, effective_at_ms=at_ms, source="admin", is_withdrawn=is_withdrawn
            ),
            administration.change("price", last, verb, model=price.model, kind=kind, effective_at_ms=at_ms),
        ]
    administration.write(writes)
    administration.prices_changed()
    views = _views(administration, administration.read(store.read_prices))
    return [view for view in views if view.price.id in ids]


def _effective(administration: Administration, at_ms: int | None) -> int:
    now_ms = administration.now_ms
    if at_ms is None:
        return now_ms
    if at_ms <= now_ms:
        raise OperatorError(
            f"A price can't take effect at {moment_text(at_ms)}.",
            why="What a request costs is fixed when it is admitted; the past is not priced again.",
            now="Leave --effective out for a price from now on, or give a time to come.",
        )
    end_ms("A price", now_ms, in_s=None, at_ms=at_ms)
    return at_ms


def _in_force(known: Sequence[PriceVersion], model: str, kind: PriceKind, at_ms: int) -> PriceVersion:
    """The version in force at a moment. Raises OperatorError when there is none."""
    found = PriceList(known).in_force(model, at_ms, kind)
    if found is None or found.is_withdrawn:
        raise _unknown(known, model, kind)
    return found


def _unknown(known: Sequence[PriceVersion], model: str, kind: PriceKind) -> OperatorError:
    models = sorted({version.price.model for version in known if version.kind == kind})
    return OperatorError(
        f"The model {model!r} has no {kind}.",
        why=f"There are {kind}s of: {finding.listed(models) or 'nothing'}.",
        now=f"Give it one with `headwater prices create {model}{' --cost' if kind == 'cost' else ''}`.",
    )


def _check_model(administration: Administration, model: str, kind: PriceKind) -> None:
    """Refuse what can't be called, what the file prices, and what has no upstream that could take anything."""
    if model not in administration.model_names:
        raise OperatorError(
            f"There is no model {model!r} to price.",
            why=f"Configured are: {finding.listed(administration.model_names)}.",
            now="Check the name, or configure the model first.",
        )
    if kind == "cost" and "/" not in model:
        raise OperatorError(
            f"The model {model!r} runs here; no upstream takes anything for it.",
            now="Leave --cost out for what callers pay.",
        )
    _refuse_priced_in_file(administration, model, kind)


def _refuse_priced_in_file(administration: Administration, model: str, kind: PriceKind) -> None:
    if (kind, model) in administration.priced_in_file:
        raise OperatorError(
            f"The {kind} of {model!r} belongs to the configuration file.",
            why=f"It has an entry in [[{kind}s]], which counts at every start.",
            now="Change it there and start again; or take it out of the file, start again, and set it here.",
        )


def _kind(is_cost: bool) -> PriceKind:
    return "cost" if is_cost else "price"


def _views(administration: Administration, versions: Sequence[PriceVersion]) -> list[PriceView]:
    """In the order of models, then of dates."""
    now_ms = administration.now_ms
    prices = PriceList(versions)
    ordered = sorted(versions, key=lambda one: (one.price.model, one.kind, one.effective_at_ms, one.price.id))
    views = []
    for version in ordered:
        in_force = prices.in_force(version.price.model, now_ms, version.kind)
        state: PriceState = "past"
        if in_force is not None and in_force.price.id == version.price.id:
            state = "in force"
        elif version.effective_at_ms > now_ms:
            state = "scheduled"
        views.append(
            PriceView(
                price=version.price,
                kind=version.kind,
                source=version.source,
                state=state,
                is_withdrawn=version.is_withdrawn,
                created_at_ms=version.created_at_ms,
                effective_at_ms=version.effective_at_ms,
            )
        )
    return views


CREATE = Verb("prices.create", CreatePrice, PriceView, _create)
LIST = Verb("prices.list", ListPrices, list[PriceView], _list)
SHOW = Verb("prices.show", ShowPrice, list[PriceView], _show)
UPDATE = Verb("prices.update", UpdatePrice, PriceView, _update)
ARCHIVE = Verb("prices.archive", ArchivePrice, PriceView, _archive)
IMPORT = Verb("prices.import", ImportPrices, list[PriceView], _import)
VERBS = (CREATE, LIST, SHOW, UPDATE, ARCHIVE, IMPORT)
