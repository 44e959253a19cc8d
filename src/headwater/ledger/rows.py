"""Rows as the code holds them: frozen, typed, one for each table the life of a request writes or reads."""

from typing import NamedTuple

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


class Settlement(NamedTuple):
    """What one transaction makes durable: a request's usage record with its attempts."""

    record: UsageRow
    attempts: tuple[AttemptRow, ...]


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
