"""Whose prefix each slot holds, and which free slot suits a request best. Pure."""

from collections.abc import Iterable, Sequence

from headwater.request import Chat


class Slot:
    """One place on a replica where a single request runs. owner: the organization whose tokens its cache holds."""

    __slots__ = ("is_busy", "last_used", "number", "owner", "prefix")

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_busy = False
        self.owner: str | None = None
        self.prefix: tuple[int, ...] = ()
        self.last_used = 0


def prefix_chain(chat: Chat) -> tuple[int, ...]:
    """One running hash for each message, so that equal beginnings have equal first elements. Tools count as message 0."""
    chain: list[int] = []
    running = hash(tuple(tool.name for tool in chat.tools))
    for message in chat.messages:
        running = hash((running, message.role, message.content, message.tool_calls, message.tool_call_id))
        chain.append(running)
    return tuple(chain)


def shared_count(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first elements two chains have in common."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def best_slot(slots: Iterable[Slot], organization_id: str, prefix: Sequence[int]) -> Slot | None:
    """The free slot with the longest warm prefix of the same organization; else an unused, else the longest unused one."""

    def worth(slot: Slot) -> tuple[int, bool, int]:
        warm = shared_count(slot.prefix, prefix) if slot.owner == organization_id else 0
        return (warm, slot.owner is None, -slot.last_used)

    return max((slot for slot in slots if not slot.is_busy), key=worth, default=None)
