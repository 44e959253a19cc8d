"""Rows as the code holds them: frozen, typed, one for each table the life of a request writes or reads."""

from typing import Literal, NamedTuple

import msgspec

from headwater.usage import Outcome, Usage, UsageSource


class AttemptRow(NamedTuple):
    """One try at one choice on one replica or upstream, and what it used."""

    id: str
    request_id: str
    choice: int
    target: str
    replica_id: str | None
    outcome: Outcome
    error_code: str | None
    usage_source: UsageSource
    usage: Usage
    started_at_ms: int
    duration_ms: int
    cost_id: str | None = None
    cost_nanos: int | None = None
    report: str | None = None
    reason: str | None = None


class UsageRow(NamedTuple):
    """One request: who, what, how it ended, what it used, what it cost."""

    request_id: str
    client_request_id: str | None
    organization_id: str
    project_id: str
    key_id: str
    dialect: str
    model: str
    is_stream: bool
    choices_count: int
    outcome: Outcome
    error_code: str | None
    usage_source: UsageSource
    usage: Usage
    price_id: str | None
    cost_nanos: int | None
    received_at_ms: int
    queue_ms: int
    ttft_ms: int | None
    duration_ms: int
    service_tier: str = "standard"
    tags: str | None = None
    flags: str = ""


class ReservationRow(NamedTuple):
    """Money held before a request runs, and all that is needed to write its record should nobody else do so.

    budgets, lots: JSON, as `schema.reservations` says; None where there are none.
    """

    id: int
    request_id: str
    epoch: int
    organization_id: str
    project_id: str
    key_id: str
    model: str
    price_id: str | None
    amount_nanos: int
    budgets: str | None
    lots: str | None
    client_request_id: str | None
    dialect: str
    service_tier: str
    is_stream: bool
    choices_count: int
    tags: str | None
    received_at_ms: int
    expires_at_ms: int


ResolutionKind = Literal["post", "void", "expire"]


class ResolutionRow(NamedTuple):
    """The one end of a reservation; charge_nanos is at most its amount, and 0 unless it is posted."""

    reservation_id: int
    kind: ResolutionKind
    charge_nanos: int
    resolved_at_ms: int


TransferKind = Literal["grant", "grant_expire", "grant_revoke", "adjust", "absorb", "late_post"]


class TransferRow(NamedTuple):
    """Money that moves beside reservations. Unique by (subject, kind, part); amount_nanos > 0 except for adjust."""

    kind: TransferKind
    subject: str
    part: int
    organization_id: str
    model: str | None
    amount_nanos: int
    note: str | None
    created_at_ms: int


class MarkRow(NamedTuple):
    """How far a stream has come; attempts: JSON of `Mark`s."""

    reservation_id: int
    attempts: str
    marked_at_ms: int


class Mark(msgspec.Struct, frozen=True, gc=False):
    """One attempt of a stream under way, as far as it is known to have come."""

    id: str
    choice: int
    target: str
    replica_id: str | None
    usage_source: UsageSource
    usage: Usage
    started_at_ms: int


class NoticeRow(NamedTuple):
    """Something subscribers are to be told; one for each (kind, subject). body: the JSON that is sent."""

    id: str
    kind: str
    subject: str
    body: str
    created_at_ms: int
    tries_count: int
    next_try_at_ms: int | None
    delivered_at_ms: int | None
    failure: str | None


class StoredAnswer(NamedTuple):
    """The answer kept for an idempotency key; body_hash: SHA-256 of the request's body."""

    project_id: str
    route: str
    idempotency_key: str
    body_hash: bytes
    request_id: str
    answer: bytes
    stored_at_ms: int
    expires_at_ms: int


class Delta(NamedTuple):
    """What a settlement changes in one cached sum; key: the columns of that cache's primary key."""

    key: tuple[str, ...]
    nanos: int


class Settlement(NamedTuple):
    """What one transaction makes durable: a request's usage record with its attempts, and the end of its reservation.

    reservation: None for a request that was rejected before anything was held.
    lots, budgets: what the charge takes from credit and from caps. has_marks: whether marks are to be deleted.
    """

    record: UsageRow
    attempts: tuple[AttemptRow, ...]
    reservation: ReservationRow | None = None
    resolution: ResolutionRow | None = None
    transfers: tuple[TransferRow, ...] = ()
    lots: tuple[Delta, ...] = ()
    budgets: tuple[Delta, ...] = ()
    has_marks: bool = False
    answer: StoredAnswer | None = None
    notices: tuple[NoticeRow, ...] = ()


class KeyRow(NamedTuple):
    """One API key as stored; the secret itself is not."""

    id: str
    organization_id: str
    project_id: str
    name: str
    hash: bytes
    hint: str
    allowed_models: str | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    weight: int = 1
