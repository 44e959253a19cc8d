"""What one decision costs with many tenants waiting: CPU time of `FairQueue.take` on real slots with warm prefixes."""

import random
import time

from gate.fair_world import Queue
from headwater.gateway.placing import Member, Place, Placing
from headwater.scheduling.bands import Band
from headwater.scheduling.fair_queue import Ask, FairQueue, Ticket

BLOCKS_COUNT = 30
SLOTS_COUNT = 8


def decision_times_us(
    tenants_count: int, decisions_count: int, *, is_one_organization: bool = False, seed: int = 1
) -> list[float]:
    """Microseconds of CPU for each decision, sorted. One slot is free at each, as in a busy pool; everybody keeps waiting.

    tenants_count: organizations, or keys of one organization.
    """
    draw = random.Random(f"decisions {seed}")
    queue: Queue = FairQueue()
    placing, members = Placing[str](), {"rep": Member("rep", "", SLOTS_COUNT, is_slotted=True)}
    prefixes = [tuple(hash((tenant, at)) for at in range(BLOCKS_COUNT)) for tenant in range(tenants_count)]

    def ask(tenant: int) -> Ask:
        organization, key = ("one", str(tenant)) if is_one_organization else (str(tenant), "key")
        tokens = draw.randint(16, 2048)
        return Ask(
            organization, key, Band.STANDARD, draw.choice((1, 1, 2)), input_tokens=tokens, prefix=prefixes[tenant]
        )

    def place(ticket: Ticket) -> Place[str] | None:
        return placing.place(ticket.ask, members)

    def warmth(ticket: Ticket) -> int:
        return placing.warmth(ticket.ask, members)

    for tenant in range(tenants_count):
        for _ in range(2):
            queue.put(ask(tenant))
    running: list[tuple[Ticket, Place[str]]] = []
    times: list[float] = []
    while len(times) < decisions_count:
        begun_ns = time.thread_time_ns()
        taken = queue.take(place, warmth)
        took_ns = time.thread_time_ns() - begun_ns
        assert taken is not None
        running.append(taken)
        if len(running) < SLOTS_COUNT:
            continue
        times.append(took_ns / 1000)
        ticket, placed = running.pop(draw.randrange(len(running)))
        for made in range(16, draw.randint(17, 400), 16):
            queue.charge(ticket, made)
        queue.finish(ticket, input_tokens=ticket.input_charged, output_tokens=ticket.output_charged)
        placing.release(placed, ticket.ask.prefix)
        tenant = int(ticket.ask.key_id if is_one_organization else ticket.ask.organization_id)
        queue.put(ask(tenant))
    return sorted(times)
