"""How much of the service an organization or a key is given beside others that wait: a whole number, 1 unless set otherwise."""

from collections.abc import Mapping

from headwater.ledger.limit_store import read_key_weights, read_organization_weights
from headwater.ledger.store import Connection


class Weights:
    """Every weight that isn't 1, in memory; changed on the event loop only, by `live.LiveBooks`."""

    def __init__(self, organizations: Mapping[str, int] | None = None, keys: Mapping[str, int] | None = None) -> None:
        """organizations, keys: weight by id; None: everybody weighs 1."""
        self._organizations = dict(organizations or {})
        self._keys = dict(keys or {})

    def load(self, connection: Connection) -> None:
        """Take them from the store; at a start."""
        self._organizations = read_organization_weights(connection)
        self._keys = read_key_weights(connection)

    def organization(self, organization_id: str) -> int:
        """The weight of an organization among organizations."""
        return self._organizations.get(organization_id, 1)

    def key(self, key_id: str) -> int:
        """The weight of a key among the keys of its organization."""
        return self._keys.get(key_id, 1)

    def set_organization(self, organization_id: str, weight: int) -> None:
        """An operator gave it another weight."""
        _set(self._organizations, organization_id, weight)

    def set_key(self, key_id: str, weight: int) -> None:
        """An operator gave it another weight."""
        _set(self._keys, key_id, weight)


def _set(weights: dict[str, int], name: str, weight: int) -> None:
    if weight == 1:
        weights.pop(name, None)
    else:
        weights[name] = weight
