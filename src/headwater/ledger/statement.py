"""The statement of one organization's month: what it had, what moved, what it has, and what it was charged for.

Read from the log by the moment money moved (a charge when its reservation was resolved), in chunks, beside the running
platform. Of requests that were archived the hourly sums are left: they count in the hour in which they ended. The
balance is what the organization has with nothing held: its wallet and what open requests hold of it, together. It is
recomputed from the first row to the last and compared with the cached balance, so that a statement is also a proof.
"""

from collections import defaultdict
from typing import Any, Literal, NamedTuple

import msgspec

from headwater.errors import OperatorError
from headwater.ledger import store
from headwater.ledger.hours import ARCHIVED_TO, MS_PER_HOUR
from headwater.ledger.store import Connection

By = Literal["project", "key", "model"]
CHUNK_COUNT = 20_000
HOURS_AT_ONCE = 24
TRIES_MAX = 5

_GROUP_COLUMNS: dict[By, str] = {"project": "project_id", "key": "key_id", "model": "model"}
_PLACE = "CASE WHEN {at} < :start THEN 'before' WHEN {at} < :end THEN 'within' ELSE 'after' END"
_SUMS = (
    "count(u.request_id), coalesce(sum(u.cost_nanos IS NULL AND u.request_id IS NOT NULL), 0),"
    " coalesce(sum(u.uncached_input + u.cache_read + u.cache_write), 0), coalesce(sum(u.cache_read), 0),"
    " coalesce(sum(u.output), 0)"
)
_CHARGES = (
    f"SELECT {_PLACE.format(at='s.resolved_at_ms')}, r.{{group}}, {_SUMS}, sum(s.charge_nanos)"  # noqa: S608 names are ours
    " FROM resolutions s JOIN reservations r ON r.id = s.reservation_id"
    " LEFT JOIN usage_records u ON u.request_id = r.request_id AND s.resolved_at_ms >= :start AND s.resolved_at_ms < :end"
    " WHERE s.id > :after AND s.id <= :to AND r.organization_id = :organization GROUP BY 1, 2"
)
_TRANSFERS = (
    f"SELECT {_PLACE.format(at='t.created_at_ms')}, t.kind, r.{{group}}, sum(t.amount_nanos)"  # noqa: S608
    " FROM transfers t LEFT JOIN reservations r ON t.kind IN ('absorb', 'late_post') AND r.request_id = t.subject"
    " WHERE t.id > :after AND t.id <= :to AND t.organization_id = :organization GROUP BY 1, 2, 3"
)
_HOURS = (
    "SELECT {group}, sum(requests_count), sum(unpriced_count), sum(uncached_input + cache_read + cache_write),"
    " sum(cache_read), sum(output), sum(cost_nanos)"
    " FROM usage_hours WHERE hour >= :after AND hour < :to AND organization_id = :organization GROUP BY 1"
)
# Records that ended in archived hours and are still in the log: the log's part of those hours.
_STILL_THERE = (
    f"SELECT {{group}}, {_SUMS}, coalesce(sum(u.cost_nanos), 0) FROM usage_records u"  # noqa: S608
    " WHERE received_at_ms < :to * 3600000 AND (received_at_ms + duration_ms) / 3600000 >= :after"
    " AND (received_at_ms + duration_ms) / 3600000 < :to AND organization_id = :organization GROUP BY 1"
)
_SNAPSHOT = (
    "SELECT (SELECT coalesce(max(id), 0) FROM resolutions), (SELECT coalesce(min(id), 1) - 1 FROM resolutions),"
    " (SELECT coalesce(max(id), 0) FROM transfers),"
    " (SELECT coalesce(sum(balance_nanos), 0) FROM balances WHERE account IN ('wallet/' || :id, 'held/' || :id)),"
    " (SELECT coalesce(sum(balance_nanos), 0) FROM balances WHERE account = 'held/' || :id),"
    " (SELECT coalesce(sum(amount_nanos), 0) FROM carried_sums"
    "  WHERE kind = 'balance' AND name IN ('wallet/' || :id, 'held/' || :id)),"
    " (SELECT coalesce(min(started_at_ms), 0) / 3600000 FROM epochs), (SELECT coalesce(sum(records_count), 0) FROM archives)"
)
_NAMES = {"project": "SELECT id, name FROM projects", "key": "SELECT id, name FROM api_keys"}


class Organization(NamedTuple):
    """Whose statement it is. currency None: the platform's."""

    id: str
    name: str
    currency: str | None


class Line(msgspec.Struct):
    """What one project, key or model was charged for. name: of a project or key; of a model its name again.

    amount_nanos: charges, late ones too. unpriced_count: requests of which no price was known; they cost nothing.
    """

    group: str
    name: str
    requests_count: int = 0
    unpriced_count: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    amount_nanos: int = 0


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One organization's span of time [start_ms, end_ms). closing = opening + grants + adjustments − lapsed − charges − late.

    lapsed_nanos: credit that expired or was taken back. late_nanos: charges after their hold had expired (of archived
    requests they are in charges_nanos). absorbed_nanos: what was used and not charged, borne by the platform; beside the
    balance. held_nanos: held by open requests now. unproved_nanos: the cached balance less what the log says; 0 unless
    the books were changed. is_archived: a part of it comes from hourly sums.
    """

    organization_id: str
    organization: str
    currency: str | None
    start_ms: int
    end_ms: int
    by: By
    opening_nanos: int
    grants_nanos: int
    adjustments_nanos: int
    lapsed_nanos: int
    charges_nanos: int
    late_nanos: int
    closing_nanos: int
    absorbed_nanos: int
    held_nanos: int
    unproved_nanos: int
    is_archived: bool
    lines: list[Line]


def find_organization(connection: Connection, wanted: str) -> Organization | None:
    """The organization of this id or name; None when there is none."""
    row = connection.execute(
        "SELECT id, name, currency FROM organizations WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC", (wanted,)
    ).fetchone()
    return None if row is None else Organization(*row)


def read_statement(
    connection: Connection,
    organization: Organization,
    *,
    start_ms: int,
    end_ms: int,
    by: By = "model",
    chunk_count: int = CHUNK_COUNT,
) -> Statement:
    """The statement of [start_ms, end_ms), both the begin of an hour. chunk_count: rows of the log read by one statement.

    Raises OperatorError when the log is being archived all the while.
    """
    for _ in range(TRIES_MAX):
        reading = _Reading(connection, organization, start_ms, end_ms, by, chunk_count)
        statement = reading.run()
        if statement is not None:
            return statement
    raise OperatorError(
        "The log was being archived while it was read, again and again.", now="Try again in some minutes."
    )


class _Reading:
    """One pass over the log for one statement."""

    def __init__(
        self, connection: Connection, organization: Organization, start_ms: int, end_ms: int, by: By, chunk_count: int
    ) -> None:
        self._connection = connection
        self._organization = organization
        self._span = (start_ms, end_ms)
        self._by = by
        self._chunk_count = chunk_count
        self._lines: dict[str, Line] = {}
        self._moved: defaultdict[tuple[str, str], int] = defaultdict(int)  # (place, kind) → nanos

    def run(self) -> Statement | None:
        """None when rows were archived meanwhile."""
        connection, moved = self._connection, self._moved
        connection.execute("BEGIN")
        try:
            row = connection.execute(_SNAPSHOT, {"id": self._organization.id}).fetchone()
            archived_to = store.read_state(connection, ARCHIVED_TO) or 0
        finally:
            connection.execute("COMMIT")
        to, after, transfers_to, balance_nanos, held_nanos, carried_nanos, began_hour, archived_count = row
        self._read_charges(after, to)
        self._read_transfers(transfers_to)
        if archived_to:
            self._read_archived(began_hour, archived_to)
        if connection.execute(_SNAPSHOT, {"id": self._organization.id}).fetchone()[-1] != archived_count:
            return None
        start_ms, end_ms = self._span
        archived = moved["within", "archived"], moved["after", "archived"]
        opening_nanos = self._net("before") + carried_nanos + sum(archived)
        closing_nanos = opening_nanos + self._net("within") - archived[0]
        return Statement(
            organization_id=self._organization.id,
            organization=self._organization.name,
            currency=self._organization.currency,
            start_ms=start_ms,
            end_ms=end_ms,
            by=self._by,
            opening_nanos=opening_nanos,
            grants_nanos=moved["within", "grant"],
            adjustments_nanos=moved["within", "adjust"],
            lapsed_nanos=moved["within", "grant_expire"] + moved["within", "grant_revoke"],
            charges_nanos=moved["within", "charge"] + archived[0],
            late_nanos=moved["within", "late_post"],
            closing_nanos=closing_nanos,
            absorbed_nanos=moved["within", "absorb"],
            held_nanos=held_nanos,
            unproved_nanos=balance_nanos - (closing_nanos + self._net("after") - archived[1]),
            is_archived=archived_to * MS_PER_HOUR > start_ms,
            lines=self._named_lines(),
        )

    def _net(self, place: str) -> int:
        """What moved into the balance then, by the rows of the log."""
        moved = self._moved
        came = moved[place, "grant"] + moved[place, "adjust"]
        went = moved[place, "grant_expire"] + moved[place, "grant_revoke"]
        return came - went - moved[place, "charge"] - moved[place, "late_post"]

    def _read_charges(self, after: int, to: int) -> None:
        for place, group, *counts, nanos in self._chunked(_CHARGES, after, to):
            self._moved[place, "charge"] += nanos
            if place == "within":
                self._add(group, counts, nanos)

    def _read_transfers(self, to: int) -> None:
        for place, kind, group, nanos in self._chunked(_TRANSFERS, 0, to):
            self._moved[place, kind] += nanos
            if place == "within" and kind == "late_post" and group is not None:
                self._add(group, (), nanos)

    def _read_archived(self, began_hour: int, archived_to: int) -> None:
        """Archived requests of the span by group, and the charges of those after it."""
        first, last = (max(moment // MS_PER_HOUR, began_hour) for moment in self._span)
        for group, sums in self._archived(first, min(last, archived_to)).items():
            self._moved["within", "archived"] += sums[-1]
            if any(sums):
                self._add(group, sums[:-1], sums[-1])
        for sums in self._archived(last, archived_to).values():
            self._moved["after", "archived"] += sums[-1]

    def _archived(self, from_hour: int, until_hour: int) -> dict[str, list[int]]:
        """By group what the hourly sums of [from_hour, until_hour) have and the log hasn't any more."""
        found: defaultdict[str, list[int]] = defaultdict(lambda: [0] * 6)
        for hour in range(from_hour, until_hour, HOURS_AT_ONCE):
            for group, *sums in self._rows(_HOURS, hour, min(hour + HOURS_AT_ONCE, until_hour)):
                found[group] = [a + b for a, b in zip(found[group], sums, strict=True)]
        if from_hour < until_hour:
            for group, *sums in self._rows(_STILL_THERE, from_hour, until_hour):
                found[group] = [a - b for a, b in zip(found[group], sums, strict=True)]
        return dict(found)

    def _chunked(self, text: str, after: int, to: int) -> list[tuple[Any, ...]]:
        rows = []
        for chunk in range(after, to, self._chunk_count):
            rows += self._rows(text, chunk, min(chunk + self._chunk_count, to))
        return rows

    def _rows(self, text: str, after: int, to: int) -> list[tuple[Any, ...]]:
        start_ms, end_ms = self._span
        given = {"after": after, "to": to, "organization": self._organization.id, "start": start_ms, "end": end_ms}
        sql = text.format(group=_GROUP_COLUMNS[self._by])
        names = {name: value for name, value in given.items() if f":{name}" in sql}
        return self._connection.execute(sql, names).fetchall()

    def _add(self, group: str, counts: "list[int] | tuple[int, ...]", nanos: int) -> None:
        line = self._lines.get(group)
        if line is None:
            line = self._lines[group] = Line(group, group)
        if counts:
            line.requests_count += counts[0]
            line.unpriced_count += counts[1]
            line.input_tokens += counts[2]
            line.cached_input_tokens += counts[3]
            line.output_tokens += counts[4]
        line.amount_nanos += nanos

    def _named_lines(self) -> list[Line]:
        """The dearest first."""
        if self._by != "model":
            names = dict(
                self._connection.execute(f"{_NAMES[self._by]} WHERE organization_id = ?", (self._organization.id,))
            )
            for line in self._lines.values():
                line.name = names.get(line.group, line.group)
        return sorted(self._lines.values(), key=lambda line: (-line.amount_nanos, line.group))
