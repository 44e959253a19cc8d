"""Double entry: how each row of the log reads as legs between accounts, and what the database itself refuses.

Storing a row for each leg would cost a request six rows instead of two, so legs are a view: the rows of `reservations`,
`resolutions`, `transfers` and the costs on `attempts`, each turned into legs that sum to zero. Accounts are named
`kind/owner`: wallet, held, grants, adjustments and absorbed of an organization, revenue of a model, expense and payable
of what an upstream took. `docs/explanation/ledger.md` explains each.
"""

_RESERVATION_LEGS = (("wallet", "-r.amount_nanos"), ("held", "r.amount_nanos"))
_RESOLUTION_LEGS = (
    ("'held/' || r.organization_id", "-r.amount_nanos"),
    ("'revenue/' || r.model", "s.charge_nanos"),
    ("'wallet/' || r.organization_id", "r.amount_nanos - s.charge_nanos"),
)
_TRANSFER_ACCOUNTS = (  # (kinds, the account that gives, the account that takes)
    ("'grant'", "'grants/' || t.organization_id", "'wallet/' || t.organization_id"),
    ("'grant_expire', 'grant_revoke'", "'wallet/' || t.organization_id", "'grants/' || t.organization_id"),
    ("'adjust'", "'adjustments/' || t.organization_id", "'wallet/' || t.organization_id"),
    ("'absorb'", "'absorbed/' || t.organization_id", "'revenue/' || t.model"),
    ("'late_post'", "'wallet/' || t.organization_id", "'revenue/' || t.model"),
)
_COST_LEGS = (("expense", "a.cost_nanos"), ("payable", "-a.cost_nanos"))


def _entries_view() -> str:
    """The SQL of the view `entries`: (subject, kind, account, amount_nanos, at_ms), one row for each leg."""
    legs = [
        f"SELECT r.request_id AS subject, 'reserve' AS kind, '{account}/' || r.organization_id AS account,"  # noqa: S608
        f" {amount} AS amount_nanos, r.received_at_ms AS at_ms FROM reservations r"
        for account, amount in _RESERVATION_LEGS
    ]
    legs += [
        f"SELECT r.request_id, s.kind, {account}, {amount}, s.resolved_at_ms"  # noqa: S608
        " FROM resolutions s JOIN reservations r ON r.id = s.reservation_id"
        for account, amount in _RESOLUTION_LEGS
    ]
    legs += [
        f"SELECT t.subject, t.kind, {account}, {sign}t.amount_nanos, t.created_at_ms"  # noqa: S608
        f" FROM transfers t WHERE t.kind IN ({kinds})"
        for kinds, gives, takes in _TRANSFER_ACCOUNTS
        for account, sign in ((gives, "-"), (takes, ""))
    ]
    legs += [
        f"SELECT a.id, 'cost', '{account}/' || a.target, {amount}, a.started_at_ms + a.duration_ms"  # noqa: S608
        " FROM attempts a WHERE a.cost_nanos IS NOT NULL"
        for account, amount in _COST_LEGS
    ]
    return "CREATE VIEW entries AS " + " UNION ALL ".join(legs)


APPEND_ONLY = ("reservations", "resolutions", "transfers", "usage_records", "attempts", "prices", "epochs", "changes")
"""Tables whose rows are never changed; archiving may delete the oldest, and says so in `archives`."""

_CHARGE_WITHIN_RESERVATION = (
    "CREATE TRIGGER charge_within_reservation BEFORE INSERT ON resolutions"
    " WHEN NEW.charge_nanos > (SELECT amount_nanos FROM reservations WHERE id = NEW.reservation_id)"
    " BEGIN SELECT RAISE(ABORT, 'a charge is above its reservation'); END"
)

PROGRAM = (
    _entries_view(),
    _CHARGE_WITHIN_RESERVATION,
    *(
        f"CREATE TRIGGER {table}_are_never_changed BEFORE UPDATE ON {table}"
        f" BEGIN SELECT RAISE(ABORT, 'rows of {table} are never changed'); END"
        for table in APPEND_ONLY
    ),
)
"""What a new database is given beside its tables."""
