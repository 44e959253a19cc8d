"""Bands of urgency: which requests go first, whoever asks, and what the API calls them. Pure."""

import enum
from typing import Final


class Band(enum.IntEnum):
    """The smaller goes first. The lower bands keep a floor (`floors.py`), so none of them starves."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


BANDS_COUNT: Final = len(Band)

TIERS: Final[dict[str, Band]] = {
    "auto": Band.STANDARD,
    "default": Band.STANDARD,
    "flex": Band.BATCH,
    "priority": Band.INTERACTIVE,
}
"""The values of OpenAI's request field `service_tier`. Source: its API reference, Chat Completions."""

PRICED_TIERS: Final[dict[Band, str]] = {Band.INTERACTIVE: "priority", Band.STANDARD: "standard", Band.BATCH: "flex"}
"""The tier whose multiplier counts in a price (`money.Price.multipliers`), and what usage records say."""

ANSWERED_TIERS: Final[dict[Band, str]] = {Band.INTERACTIVE: "priority", Band.STANDARD: "default", Band.BATCH: "flex"}
"""What the answer's field `service_tier` says: the tier that served the request."""


def band_of_record(service_tier: str) -> Band:
    """The band of a usage record's tier; tiers that no request can ask for count as standard, `batch` as batch."""
    if service_tier == "priority":
        return Band.INTERACTIVE
    return Band.BATCH if service_tier in ("flex", "batch") else Band.STANDARD
