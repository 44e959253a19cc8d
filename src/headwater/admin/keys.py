"""Keys as an operator handles them: create, list, show, update, revoke."""

import json
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from headwater.admin import finding
from headwater.admin.administration import Administration, Verb
from headwater.admin.checks import check_name, check_weight, end_ms
from headwater.admin.organizations import DEFAULT_PROJECT
from headwater.admin.projects import organization_names
from headwater.errors import OperatorError
from headwater.ids import KEY, new_id
from headwater.keys import new_key
from headwater.ledger import admin_store, limit_store, store
from headwater.ledger.admin_store import ProjectRow
from headwater.ledger.rows import KeyRow
from headwater.ledger.store import Write


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish for a new key. allowed_models None: every model; it ends in expires_in_s or at expires_at_ms, or never.

    project, organization: names or ids; None: the default ones. weight: its share beside other keys that wait.
    """

    name: str
    allowed_models: list[str] | None = None
    expires_in_s: float | None = None
    expires_at_ms: int | None = None
    project: str | None = None
    organization: str | None = None
    weight: int = 1


class ListKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see every key, or those of one project or organization."""

    project: str | None = None
    organization: str | None = None


class ShowKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to see one, by id or name."""

    key: str


class UpdateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to change one, by id or name; what isn't set stays. expires_at_ms None: it never expires."""

    key: str
    name: str | UnsetType = UNSET
    allowed_models: list[str] | UnsetType | None = UNSET
    expires_in_s: float | None = None
    expires_at_ms: int | UnsetType | None = UNSET
    weight: int | UnsetType = UNSET


class RevokeKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wish to revoke one, by id or name."""

    key: str


class KeyView(msgspec.Struct, frozen=True):
    """A key as people see it: everything but the secret. organization, project: their names."""

    id: str
    name: str
    hint: str
    organization_id: str
    organization: str
    project_id: str
    project: str
    allowed_models: list[str] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    weight: int

    def state(self, now_ms: float) -> str:
        """active, expired or revoked, at a moment."""
        if self.revoked_at_ms is not None:
            return "revoked"
        return "expired" if self.expires_at_ms is not None and self.expires_at_ms <= now_ms else "active"


class CreatedKeyView(msgspec.Struct, frozen=True):
    """A new key with its secret: shown once, stored nowhere."""

    key: str
    details: KeyView


def _create(administration: Administration, wish: CreateKey) -> CreatedKeyView:
    """Make a key; it works when this returns."""
    check_name("A key", wish.name)
    now_ms = administration.now_ms
    expires_at_ms = end_ms("A key", now_ms, in_s=wish.expires_in_s, at_ms=wish.expires_at_ms)
    _check_models(administration, wish.allowed_models)
    check_weight("A key", wish.weight)
    project = _project(administration, wish.project, wish.organization)
    made = new_key()
    row = KeyRow(
        id=new_id(KEY),
        organization_id=project.organization_id,
        project_id=project.id,
        name=wish.name,
        hash=made.hash,
        hint=made.hint,
        allowed_models=_models_json(wish.allowed_models),
        created_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
        revoked_at_ms=None,
        weight=wish.weight,
    )
    administration.write(
        [
            Write(store.INSERT_KEY, row),
            administration.change(
                "key",
                row.id,
                "create",
                name=row.name,
                project_id=row.project_id,
                allowed_models=wish.allowed_models,
                expires_at_ms=expires_at_ms,
                weight=wish.weight,
            ),
        ]
    )
    if row.weight != 1 and administration.live is not None:
        administration.live.weigh_key(row.id, row.weight)
    return CreatedKeyView(made.secret, key_views(administration, [row])[0])


def _list(administration: Administration, wish: ListKeys) -> list[KeyView]:
    """Oldest first, revoked ones too: their usage still refers to them."""
    if wish.project is not None:
        project = finding.project(administration, wish.project, wish.organization)
        rows = administration.read(lambda reader: admin_store.read_keys_of(reader, project.organization_id, project.id))
    elif wish.organization is not None:
        owner = finding.organization(administration, wish.organization)
        rows = administration.read(lambda reader: admin_store.read_keys_of(reader, owner.id))
    else:
        rows = administration.read(store.read_keys)
    return key_views(administration, rows)


def _show(administration: Administration, wish: ShowKey) -> KeyView:
    return key_views(administration, [finding.key(administration, wish.key)])[0]


def _update(administration: Administration, wish: UpdateKey) -> KeyView:
    """Change it; requests are held to it as it is now when this returns."""
    found = finding.key(administration, wish.key)
    if found.revoked_at_ms is not None:
        raise OperatorError(f"The key {found.id} ({found.name}) is revoked.", now="Create a new one.")
    changed = found
    if wish.name is not UNSET:
        changed = changed._replace(name=check_name("A key", wish.name))
    if wish.allowed_models is not UNSET:
        _check_models(administration, wish.allowed_models)
        changed = changed._replace(allowed_models=_models_json(wish.allowed_models))
    if wish.expires_in_s is not None or wish.expires_at_ms is not UNSET:
        at_ms = None if wish.expires_at_ms is UNSET else wish.expires_at_ms
        expires_at_ms = end_ms("A key", administration.now_ms, in_s=wish.expires_in_s, at_ms=at_ms)
        changed = changed._replace(expires_at_ms=expires_at_ms)
    if wish.weight is not UNSET:
        changed = changed._replace(weight=check_weight("A key", wish.weight))
    if changed != found:
        detail = {
            name: getattr(changed, name)
            for name in ("name", "allowed_models", "expires_at_ms", "weight")
            if getattr(changed, name) != getattr(found, name)
        }
        administration.write(
            [
                Write(admin_store.UPDATE_KEY, (found.id, changed.name, changed.allowed_models, changed.expires_at_ms)),
                Write(limit_store.SET_KEY_WEIGHT, (found.id, changed.weight)),
                administration.change("key", found.id, "update", **detail),
            ]
        )
        if administration.live is not None:
            administration.live.forget_key(found.hash)
            if changed.weight != found.weight:
                administration.live.weigh_key(found.id, changed.weight)
    return key_views(administration, [changed])[0]


def _revoke(administration: Administration, wish: RevokeKey) -> KeyView:
    """Revoke it, effective when this returns. Revoking twice keeps the first time."""
    found = finding.key(administration, wish.key)
    if found.revoked_at_ms is None:
        found = found._replace(revoked_at_ms=administration.now_ms)
        administration.write(
            [
                Write(store.REVOKE_KEY, (found.revoked_at_ms, found.id)),
                administration.change("key", found.id, "revoke"),
            ]
        )
    if administration.live is not None:
        administration.live.forget_key(found.hash)
    return key_views(administration, [found])[0]


def key_views(administration: Administration, rows: Sequence[KeyRow]) -> list[KeyView]:
    """The presentable parts of keys' rows."""
    organizations = organization_names(administration)
    projects = {row.id: row.name for row in administration.read(admin_store.read_projects)}
    return [
        KeyView(
            id=row.id,
            name=row.name,
            hint=f"{row.hint}…",
            organization_id=row.organization_id,
            organization=organizations[row.organization_id],
            project_id=row.project_id,
            project=projects[row.project_id],
            allowed_models=None if row.allowed_models is None else json.loads(row.allowed_models),
            created_at_ms=row.created_at_ms,
            expires_at_ms=row.expires_at_ms,
            revoked_at_ms=row.revoked_at_ms,
            weight=row.weight,
        )
        for row in rows
    ]


def _project(administration: Administration, text: str | None, organization_text: str | None) -> ProjectRow:
    """Where a new key goes: the named project, else the organization's default one."""
    if organization_text is not None:
        finding.active_organization(administration, organization_text)
    if text is not None:
        return finding.active_project(administration, text, organization_text)
    if organization_text is None:
        return finding.active_project(administration, administration.books.project_id)
    return finding.active_project(administration, DEFAULT_PROJECT, organization_text)


def _check_models(administration: Administration, models: Sequence[str] | None) -> None:
    for model in models or ():
        if model not in administration.model_names:
            raise OperatorError(
                f"There is no model {model!r} to limit a key to.",
                why=f"Configured are: {', '.join(administration.model_names)}.",
                now="Check the name, or configure the model first.",
            )


def _models_json(models: Sequence[str] | None) -> str | None:
    return None if models is None else json.dumps(sorted(models))


CREATE = Verb("keys.create", CreateKey, CreatedKeyView, _create)
LIST = Verb("keys.list", ListKeys, list[KeyView], _list)
SHOW = Verb("keys.show", ShowKey, KeyView, _show)
UPDATE = Verb("keys.update", UpdateKey, KeyView, _update)
REVOKE = Verb("keys.revoke", RevokeKey, KeyView, _revoke)
VERBS = (CREATE, LIST, SHOW, UPDATE, REVOKE)
