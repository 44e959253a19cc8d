"""Whose prefix each slot holds, and which free slot suits a request best. Pure."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from headwater.request import Chat

if TYPE_CHECKING:
    from headwater.gateway.prefixes import Copy, Prefixes, Reading

BLOCK_CHARACTERS = 128
"""Prompts are compared by blocks of so much text: fine enough for a shared beginning of one long message."""
BLOCK_TOKENS = 32
"""What a block is taken for: four characters a token, as in English. What was really reused, the engine reports."""
BLOCKS_MAX = 4096
"""Text beyond is not compared: by then the beginnings are either the same or not."""


class Slot:
    """One place on a replica where a single request runs. owner: the organization whose tokens its cache holds.

    prefixes: of its replica; None for an upstream's place. reading and copy concern the request it was last taken for: the
    reading others may wait for, and the saved state that is to be restored into it before the call.
    """

    __slots__ = ("copy", "is_busy", "is_unknown", "last_used", "number", "owner", "prefix", "prefixes", "reading")

    def __init__(self, number: int, prefixes: "Prefixes | None" = None) -> None:
        self.number = number
        self.prefixes = prefixes
        self.is_busy = False
        self.is_unknown = False
        """Whether a change of its cache was asked for and never confirmed: then nothing in it is ever used again."""
        self.owner: str | None = None
        self.prefix: tuple[int, ...] = ()
        self.last_used = 0
        self.reading: Reading | None = None
        self.copy: Copy | None = None

    def is_reusable_by(self, organization_id: str) -> bool:
        """Whether a request of this organization may use the tokens cached here."""
        return not self.is_unknown and (self.owner is None or self.owner == organization_id)


def prefix_chain(chat: Chat) -> tuple[int, ...]:
    """One running hash for each block of the prompt's text, so that equal beginnings have equal first elements.

    An element stands for everything before it too. Tools come first, as most templates have them.
    """
    parts: list[str] = [repr(chat.tools)] if chat.tools else []
    for message in chat.messages:
        parts.append(message.role)
        if message.content is not None:
            parts.append(message.content)
        if message.tool_calls:
            parts.append(repr(message.tool_calls))
        if message.tool_call_id is not None:
            parts.append(message.tool_call_id)
    text = "\0".join(parts)
    chain: list[int] = []
    running = 0
    for start in range(0, min(len(text), BLOCKS_MAX * BLOCK_CHARACTERS), BLOCK_CHARACTERS):
        running = hash((running, text[start : start + BLOCK_CHARACTERS]))
        chain.append(running)
    return tuple(chain)


def shared_count(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first elements two chains have in common. An element that is equal says so of all before it."""
    low, high = 0, min(len(one), len(other))
    if not high or one[0] != other[0]:
        return 0
    if one[high - 1] == other[high - 1]:
        return high
    while low < high:
        middle = (low + high) // 2
        if one[middle] == other[middle]:
            low = middle + 1
        else:
            high = middle
    return low


def best_slot(slots: Iterable[Slot], organization_id: str, prefix: Sequence[int]) -> Slot | None:
    """The free slot with the longest warm prefix of the same organization; else an unused, else the longest unused one."""

    def worth(slot: Slot) -> tuple[int, bool, int]:
        is_warm = slot.owner == organization_id and not slot.is_unknown
        warm = shared_count(slot.prefix, prefix) if is_warm else 0
        return (warm, slot.owner is None, -slot.last_used)

    return max((slot for slot in slots if not slot.is_busy), key=worth, default=None)
