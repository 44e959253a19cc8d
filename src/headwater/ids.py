"""Ids: a prefix that says what it names, then 32 hex digits that sort by time.

The digits are laid out as UUIDv7 orders them (RFC 9562 §5.7): 48 bits of Unix milliseconds, then 80 random bits; we keep
all 80 random and set no version bits, since nothing here parses them as a UUID. An id is a name and no secret: who may
see what it names is checked each time, so its bits come from Python's generator (seeded by the system) without a
system call for each.
"""

import random
import time
from typing import Final

REQUEST: Final = "req_"
ATTEMPT: Final = "att_"
ORGANIZATION: Final = "org_"
PROJECT: Final = "prj_"
KEY: Final = "key_"
REPLICA: Final = "rep_"
PRICE: Final = "prc_"
EVENT: Final = "evt_"
ADJUSTMENT: Final = "adj_"
GRANT: Final = "grt_"
BUDGET: Final = "bud_"
LIMIT: Final = "lim_"


def new_id(prefix: str) -> str:
    """Return a fresh id such as `req_0190f3c2…`; two made in one process in one millisecond differ in 80 random bits."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"
