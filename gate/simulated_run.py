"""One seed: a platform whose requests, clock, commits, operator and crashes come in the order that the seed draws.

A request is a generator that gives way wherever the real one awaits; the scheduler decides who goes on. So each seed is
one interleaving, and runs the same way each time: `Outcome.trace` is the hash of everything that happened.
"""

import hashlib
import random
from collections.abc import Callable, Generator
from typing import NamedTuple

from gate.simulated_disk import Broken, Log, MemoryLog, Ticket, audit
from gate.simulated_truth import Truth
from gate.simulated_world import (
    DAY_MS,
    EPOCH_MS,
    HOUR_MS,
    KEYS,
    MINUTE_MS,
    MODEL,
    PRICE,
    PROJECTS,
    TAGS,
    Asked,
    World,
    draw,
)
from headwater.ledger.book import IDLE_MS, Book, Hold, Settled, Shortfall
from headwater.ledger.load_book import key_caps
from headwater.ledger.rows import (
    AttemptRow,
    MarkRow,
    ReservationRow,
    ResolutionRow,
    Settlement,
    TransferKind,
    TransferRow,
    UsageRow,
)
from headwater.usage import NO_USAGE, Usage

STEPS_MAX = 20_000
CLOCK_STEPS_MS = (
    *(10, 1_000, 1_000, 5_000, 10_000, MINUTE_MS, 2 * MINUTE_MS, HOUR_MS, 7 * HOUR_MS, DAY_MS),
    *(-10, -1_000, -HOUR_MS, -DAY_MS),
)
Task = Generator[Ticket | None, None, None]


def plain_book(next_id: int, keys_count_max: int) -> Book:
    """The product's book."""
    return Book(next_id=next_id, keys_count_max=keys_count_max)


class Parts(NamedTuple):
    """What a simulation is made of; a twin replaces one of them."""

    make_book: Callable[[int, int], Book] = plain_book
    acknowledges_early: bool = False


PRODUCT = Parts()


class Outcome(NamedTuple):
    """What a seed did. broken: the promise it broke, None for none; metric: what kind. trace: hash of all that happened."""

    seed: int
    requests_count: int
    acknowledged_count: int
    crashes_count: int
    trace: str
    metric: str | None
    broken: str | None


async def simulate(seed: int, parts: Parts = PRODUCT, make_log: Callable[[World], Log] = MemoryLog) -> Outcome:
    """Run a seed to its end, or to the first broken promise."""
    world = draw(seed)
    run = _Run(world, parts, make_log(world))
    broken: Broken | None = None
    try:
        await run.to_the_end()
    except Broken as error:
        broken = error
    except (KeyError, ValueError, AssertionError) as error:  # a broken book may break in any way
        broken = Broken("misstated", f"{type(error).__name__}: {error}")
    trace = hashlib.blake2b(repr(run.trace).encode(), digest_size=12).hexdigest()
    return Outcome(
        seed,
        run.admitted_count,
        len(run.truth.acknowledged),
        run.crashes_count,
        trace,
        None if broken is None else broken.metric,
        None if broken is None else f"seed {seed}: {broken}",
    )


class _Open(NamedTuple):
    """A reservation whose time may run out."""

    hold: Hold
    row: ReservationRow


class _Run:
    def __init__(self, world: World, parts: Parts, log: Log) -> None:
        self.world, self.log = world, log
        self.truth = Truth(world)
        self.trace: list[object] = []
        self.admitted_count = 0
        self.crashes_count = 0
        self._parts = parts
        self._pick = random.Random(f"run {world.seed}")
        self._now_ms = world.start_ms
        self._to_come = list(enumerate(world.requests))[::-1]
        self._tasks: dict[int, Task] = {}
        self._runnable: list[int] = []
        self._unresolved: dict[int, _Open] = {}
        self._budget_changes_count = 0
        self._revoked: set[str] = set()
        self._open_from = 1
        self._book = Book()  # until `to_the_end` starts the platform

    async def to_the_end(self) -> None:
        """Until every request has ended and everything is durable; then look at everything once more."""
        self._book = await self.log.start(self._make_book)
        for _ in range(STEPS_MAX):
            if not (self._to_come or self._tasks):
                break
            roll = self._pick.random()
            if roll < 0.68:
                await self._go_on()
            elif roll < 0.86:
                await self._commit()
            elif roll < 0.93:
                await self._turn_the_clock()
            elif roll < 0.97:
                self._sweep()
            elif roll < 0.985:
                self._operate()
            elif roll < 0.995:
                await self._crash()
            else:
                await self._fail_to_commit()
        else:
            raise Broken("leaked", f"{sorted(self._tasks)} have not ended after {STEPS_MAX} steps")
        await self._commit()
        self._look_at_the_disk()
        self._look_at_memory()
        await self.log.close(self._now_ms)

    def _make_book(self, next_id: int) -> Book:
        return self._parts.make_book(next_id, self.world.keys_count_max)

    # -- what happens --------------------------------------------------------------------------------------------------

    async def _go_on(self) -> None:
        """Somebody who can goes on: a request under way, or a new one."""
        is_room = self._to_come and len(self._tasks) < self.world.concurrency
        if is_room and (not self._runnable or self._pick.random() < 0.3):
            number, asked = self._to_come.pop()
            self._tasks[number] = self._serve(number, asked)
            self._runnable.append(number)
        elif not self._runnable:
            await self._commit()
            return
        at = self._pick.randrange(len(self._runnable))
        number = self._runnable[at]
        self.trace.append(number)
        try:
            ticket = next(self._tasks[number])
        except StopIteration:
            del self._tasks[number]
        else:
            if ticket is None or ticket.state != "waiting":
                return
            ticket.task = number
        self._runnable[at] = self._runnable[-1]
        self._runnable.pop()

    async def _commit(self) -> None:
        tickets = await self.log.commit()
        self.trace.append(("commit", len(tickets)))
        self._resolve(tickets, "durable")

    def _resolve(self, tickets: list[Ticket], state: str) -> None:
        for ticket in tickets:
            ticket.state = state
            if ticket.task is not None and ticket.task in self._tasks:
                self._runnable.append(ticket.task)

    async def _turn_the_clock(self) -> None:
        step_ms = self._pick.choice(CLOCK_STEPS_MS)
        if step_ms >= IDLE_MS // 2:
            # Neither a commit nor the reading of a key takes so long.
            await self._commit()
            self._budget_changes_count += 1
        self._now_ms += step_ms
        self.trace.append(("clock", step_ms))

    def _sweep(self) -> None:
        now_ms = self._now_ms
        for held in [one for one in self._unresolved.values() if one.row.expires_at_ms <= now_ms]:
            del self._unresolved[held.row.id]
            settled = self._book.expire(held.hold, now_ms)
            self.truth.expired(held.hold, settled, now_ms)
            self.log.put("expire", held.row, ResolutionRow(held.row.id, "expire", 0, now_ms), settled)
            self.trace.append(("expire", held.row.id))
        lapsed = self._book.expire_lots(now_ms)
        self.truth.swept(lapsed, now_ms)
        if lapsed:
            self.log.put("lapse", lapsed)
            self.trace.append(("lapse", len(lapsed)))
        if self._book.oldest_open() != self._open_from:
            self._open_from = self._book.oldest_open()
            self.log.put("remember", self._open_from)

    def _operate(self) -> None:
        """An operator changes a limit, archives a budget or revokes a grant."""
        what, names = self._pick.random(), list(self.truth.terms)
        if what < 0.3:
            grant = self._pick.choice(self.world.grants)
            if grant.id in self._revoked:
                return
            self._revoked.add(grant.id)
            gone = self._book.revoke_lot(grant.organization_id, grant.id)
            self.truth.revoked(grant.id, gone)
            lapsed = [TransferRow("grant_revoke", grant.id, 0, grant.organization_id, None, gone, None, self._now_ms)]
            self.log.put("revoke", grant.id, lapsed if gone else [])
            self.trace.append(("revoke", grant.id, gone))
        elif names:
            terms = self.truth.terms[self._pick.choice(names)]
            self._budget_changes_count += 1
            if what < 0.8:
                terms = terms._replace(limit_nanos=self._pick.randrange(50, 1_200))
                self.log.decide(terms)
                self._book.set_budget(terms)
                self.truth.changed(terms)
            else:
                self.log.decide(terms, is_archived=True)
                self._book.drop_budget(terms)
                self.truth.archived(terms)
            self.trace.append((terms.id, terms.limit_nanos))

    async def _crash(self) -> None:
        """The process is gone; a first part of what waited for a commit may be durable. Then the next start."""
        self.crashes_count += 1
        self._tasks, self._runnable, self._unresolved = {}, [], {}
        before, self._book = await self.log.die(self._pick.random(), self._now_ms, self._make_book)
        after = self.log.contents()
        self._revoked, self._open_from = set(after.revoked), 0
        for one in before.open_ids():
            row, mark, resolution = before.reservations[one], before.marks.get(one), after.resolutions.get(one)
            if resolution is None:
                raise Broken("leaked", f"reservation {one} is still open after the restart")
            told = 0 if mark is None or not row.is_stream else min(_marked_nanos(mark), row.amount_nanos)
            if resolution.charge_nanos != told:
                raise Broken("misstated", f"reservation {one} was recovered with {resolution.charge_nanos}, not {told}")
        self.truth.restarted(after)
        self._look_at_the_disk()
        self.trace.append(("crash", len(after.reservations), len(before.open_ids())))

    async def _fail_to_commit(self) -> None:
        """The disk fails: everybody who waits is told so, and the process ends."""
        tickets = await self.log.fail()
        self.trace.append(("failure", len(tickets)))
        self._resolve(tickets, "failed")
        for number in {ticket.task for ticket in tickets if ticket.task is not None} & self._tasks.keys():
            next(self._tasks[number], None)  # who hears of the failure must not acknowledge anything
        await self._crash()

    # -- a request ---------------------------------------------------------------------------------------------------------

    def _serve(self, number: int, asked: Asked) -> Task:
        """The life of a request, as `gateway/life.py` and `gateway/cashier.py` have it; each yield is an await."""
        project_id = KEYS[asked.key_id]
        organization_id = PROJECTS[project_id]
        while not self._book.is_loaded(asked.key_id):
            changes_count, read = self._budget_changes_count, self.log.read_key(asked.key_id)
            yield None
            if changes_count == self._budget_changes_count:
                self._book.load_key(asked.key_id, key_caps(read), self._now_ms)
        received_ms = self._now_ms
        try:
            hold = self._book.reserve(
                organization_id=organization_id,
                project_id=project_id,
                key_id=asked.key_id,
                tags=asked.tags,
                amount_nanos=asked.amount_nanos,
                now_ms=received_ms,
            )
        except Shortfall as short:
            self.truth.refused(asked, received_ms)
            self.trace.append((number, short.scope))
            return
        self.admitted_count += 1
        self.truth.admitted(asked, hold, received_ms)
        row = _reservation(number, asked, hold, received_ms)
        self._unresolved[hold.id] = _Open(hold, row)
        durable = self.log.put("reserve", row)
        if asked.is_stream:
            yield durable  # before its first content
            if durable.state == "failed":
                return
        delivered = 0
        for step in range(asked.steps_count):
            if step == asked.leaves_at:
                break
            yield None
            delivered = asked.cost_nanos * (step + 1) // asked.steps_count
            if asked.is_stream and step % 2 == 0:
                self.log.put("mark", MarkRow(hold.id, _mark_json(hold.id, delivered), self._now_ms))
        now_ms = self._now_ms
        settled = self._book.settle(hold, delivered, now_ms)
        self._unresolved.pop(hold.id, None)
        self.truth.settled(hold, delivered, settled, now_ms)
        written = self.log.put("settle", _settlement(row, settled, delivered, now_ms))
        if self._parts.acknowledges_early:
            self.truth.acknowledge(row.request_id, settled.charge_nanos)
        yield written
        if written.state == "failed":
            return
        self.truth.acknowledge(row.request_id, settled.charge_nanos)
        self.trace.append((number, settled.charge_nanos))

    # -- what must hold ----------------------------------------------------------------------------------------------------

    def _look_at_the_disk(self) -> None:
        contents = self.log.contents()
        self.truth.check(contents)
        audit(contents, self.world, self.truth.limits_max)
        if not self._tasks and (left := {*contents.open_ids(), *contents.unended_ids()}):
            raise Broken("leaked", f"reservations {sorted(left)} have no end or no record, and nobody will end them")

    def _look_at_memory(self) -> None:
        """At the end nothing is held, and memory knows what the disk knows, in every period the clock was in."""
        contents = self.log.contents()
        if self._book.open_holds:
            raise Broken("leaked", f"{list(self._book.open_holds)} are held by nobody")
        for key_id, project_id in KEYS.items():
            organization_id = PROJECTS[project_id]
            if not self._book.is_loaded(key_id):
                self._book.load_key(key_id, key_caps(self.log.read_key(key_id)), self._now_ms)
            for now_ms in (self.world.start_ms, self.world.start_ms + DAY_MS, self._now_ms):
                for counter in self._book.counters(
                    organization_id=organization_id, project_id=project_id, key_id=key_id, tags=TAGS, now_ms=now_ms
                ):
                    name = (counter.terms.id, counter.period.key)
                    if counter.held_nanos or counter.spent_nanos != contents.spent[name]:
                        said = f"{counter.spent_nanos} spent and {counter.held_nanos} held"
                        raise Broken(
                            "misstated", f"memory says {said} of {name}, the disk {contents.spent[name]} spent"
                        )
        self.truth.check_credit(contents)
        for organization_id in self.world.is_prepaid:
            credit = self._book.credit_nanos(organization_id, self._now_ms)
            if credit != self.truth.credit_nanos(organization_id, self._now_ms):
                raise Broken("misstated", f"memory says {organization_id} has {credit} of credit left")


# -- rows ------------------------------------------------------------------------------------------------------------------


def _reservation(number: int, asked: Asked, hold: Hold, now_ms: int) -> ReservationRow:
    project_id = KEYS[asked.key_id]
    return ReservationRow(
        id=hold.id,
        request_id=f"req_{number}",
        epoch=1,
        organization_id=PROJECTS[project_id],
        project_id=project_id,
        key_id=asked.key_id,
        model=MODEL,
        price_id=PRICE.id,
        amount_nanos=hold.amount_nanos,
        budgets=hold.budgets_json,
        lots=hold.lots_json,
        client_request_id=None,
        dialect="openai_chat",
        service_tier="standard",
        is_stream=asked.is_stream,
        choices_count=1,
        tags=" ".join(asked.tags) or None,
        received_at_ms=now_ms,
        expires_at_ms=now_ms + asked.life_ms,
    )


def _mark_json(hold_id: int, nanos: int) -> str:
    usage = f'{{"output":{nanos}}}'
    return (
        f'[{{"id":"att_{hold_id}","choice":0,"target":"{MODEL}","replica_id":null,"usage_source":"counted",'
        f'"usage":{usage},"started_at_ms":{EPOCH_MS}}}]'
    )


def _marked_nanos(mark: MarkRow) -> int:
    return int(mark.attempts.partition('"output":')[2].partition("}")[0])


def _settlement(row: ReservationRow, settled: Settled, cost_nanos: int, now_ms: int) -> Settlement:
    usage = Usage(output=cost_nanos) if cost_nanos else NO_USAGE
    transfers, flags = list(settled.transfers), []
    if settled.is_late:
        flags.append("late")
        if settled.charge_nanos:
            transfers.append(_transfer("late_post", row, settled.charge_nanos, settled.late_lots_json, now_ms))
    if settled.absorbed_nanos:
        flags.append("absorbed")
        transfers.append(_transfer("absorb", row, settled.absorbed_nanos, None, now_ms))
    record = UsageRow(
        request_id=row.request_id,
        client_request_id=None,
        organization_id=row.organization_id,
        project_id=row.project_id,
        key_id=row.key_id,
        dialect=row.dialect,
        model=row.model,
        is_stream=row.is_stream,
        choices_count=1,
        outcome="ok",
        error_code=None,
        usage_source="reported",
        usage=usage,
        price_id=row.price_id,
        cost_nanos=settled.charge_nanos,
        received_at_ms=row.received_at_ms,
        queue_ms=0,
        ttft_ms=None,
        duration_ms=max(0, now_ms - row.received_at_ms),
        tags=row.tags,
        flags=" ".join(flags),
    )
    attempt = AttemptRow(
        f"att_{row.id}", row.request_id, 0, MODEL, None, "ok", None, "reported", usage, row.received_at_ms, 0
    )
    return Settlement(
        record,
        (attempt,),
        reservation=row,
        resolution=None if settled.is_late else ResolutionRow(row.id, "post", settled.charge_nanos, now_ms),
        transfers=tuple(transfers),
        lots=settled.lots,
        budgets=settled.budgets,
        has_marks=row.is_stream,
    )


def _transfer(kind: TransferKind, row: ReservationRow, nanos: int, note: str | None, now_ms: int) -> TransferRow:
    return TransferRow(kind, row.request_id, 0, row.organization_id, row.model, nanos, note, now_ms)
