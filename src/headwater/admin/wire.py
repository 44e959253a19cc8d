"""What travels over the admin socket."""

import json
from typing import Any

import msgspec

from headwater.ledger.rows import KeyRow


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for a new key. allowed_models None: every model; expires_in_s None: never."""

    name: str
    allowed_models: list[str] | None = None
    expires_in_s: float | None = None


class KeyView(msgspec.Struct, frozen=True):
    """A key as people see it: everything but the secret. Times are milliseconds since the Unix epoch."""

    id: str
    name: str
    hint: str
    organization_id: str
    project_id: str
    allowed_models: list[str] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None

    def state(self, now_ms: float) -> str:
        """active, expired or revoked, at a moment."""
        if self.revoked_at_ms is not None:
            return "revoked"
        return "expired" if self.expires_at_ms is not None and self.expires_at_ms <= now_ms else "active"


class CreatedKeyView(msgspec.Struct, frozen=True):
    """A new key with its secret: shown once, stored nowhere."""

    key: str
    details: KeyView


class Problem(msgspec.Struct, frozen=True):
    """An OperatorError on its way to the person."""

    what: str
    why: str
    now: str


def key_view(row: KeyRow) -> KeyView:
    """The presentable part of a key's row."""
    allowed: Any = None if row.allowed_models is None else json.loads(row.allowed_models)
    return KeyView(
        id=row.id,
        name=row.name,
        hint=f"{row.hint}…",
        organization_id=row.organization_id,
        project_id=row.project_id,
        allowed_models=allowed,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        revoked_at_ms=row.revoked_at_ms,
    )
