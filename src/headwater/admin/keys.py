"""Keys as an operator handles them: create, list, revoke. The same whether the platform runs or not."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from headwater.admin.books import Books
from headwater.clock import Clock
from headwater.errors import OperatorError
from headwater.ids import KEY, new_id
from headwater.keys import new_key
from headwater.ledger import store
from headwater.ledger.rows import KeyRow

NAME_CHARACTERS_MAX = 100
EXPIRES_IN_S_MAX = 100 * 365.25 * 86_400


class CreatedKey(NamedTuple):
    """A key that was just made, with the secret that is never shown again."""

    secret: str
    row: KeyRow


class KeyAdmin:
    """The one owner of changes to keys."""

    def __init__(self, books: Books, *, clock: Clock, model_names: Sequence[str]) -> None:
        """model_names: what a key may be limited to."""
        self._books = books
        self._clock = clock
        self._model_names = model_names

    def create(self, name: str, *, allowed_models: Sequence[str] | None, expires_in_s: float | None) -> CreatedKey:
        """Make a key of the default project; it works when this returns. Raises OperatorError for impossible wishes."""
        if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
            raise OperatorError(
                f"A key's name has 1 to {NAME_CHARACTERS_MAX} printable characters; given: {name[:120]!r}."
            )
        if expires_in_s is not None and not 0 < expires_in_s <= EXPIRES_IN_S_MAX:
            raise OperatorError(
                f"A key can't expire {expires_in_s:g} s from now; give a positive time of at most 100 years."
            )
        for model in allowed_models or ():
            if model not in self._model_names:
                raise OperatorError(
                    f"There is no model {model!r} to limit a key to.",
                    why=f"Configured are: {', '.join(self._model_names)}.",
                    now="Check the name, or configure the model first.",
                )
        made = new_key()
        now_ms = int(self._clock.now_s() * 1000)
        row = KeyRow(
            id=new_id(KEY),
            organization_id=self._books.organization_id,
            project_id=self._books.project_id,
            name=name,
            hash=made.hash,
            hint=made.hint,
            allowed_models=None if allowed_models is None else json.dumps(sorted(allowed_models)),
            created_at_ms=now_ms,
            expires_at_ms=None if expires_in_s is None else now_ms + int(expires_in_s * 1000),
            revoked_at_ms=None,
        )
        self._books.writer.submit([store.Write(store.INSERT_KEY, tuple(row))]).result()
        return CreatedKey(made.secret, row)

    def list(self) -> "list[KeyRow]":
        """Every key, oldest first, revoked ones too: their usage still refers to them."""
        reader = store.open_reader(self._books.database)
        try:
            return store.read_keys(reader)
        finally:
            reader.close()

    def revoke(self, key_id: str) -> KeyRow:
        """Revoke a key in the store. Revoking twice keeps the first time. Raises OperatorError.

        Whoever holds keys in memory is to forget this one before the revocation is confirmed to anybody.
        """
        found = next((row for row in self.list() if row.id == key_id), None)
        if found is None:
            raise OperatorError(f"There is no key {key_id!r}.", now="`headwater keys list` shows the ids.")
        now_ms = int(self._clock.now_s() * 1000)
        self._books.writer.submit([store.Write(store.REVOKE_KEY, (now_ms, key_id))]).result()
        return found._replace(revoked_at_ms=found.revoked_at_ms or now_ms)
