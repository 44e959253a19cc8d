"""The program whose writes the power cut replays: a fresh ledger, the platform's own writer, reservations and their
settlements, a journal.

Each acknowledgement is one `write` of the submission's number, made where the future resolves: on the writer's own
thread, before it can begin the next commit.

Run: python -m gate.ledger_program DIRECTORY --commits N --seed N [--synchronous FULL|NORMAL] [--split]
"""

import argparse
import os
import random
import sys
from collections.abc import Iterable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gate.submissions import Plan
from headwater.ledger import store
from headwater.ledger.batch import Batch
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.rows import MarkRow, ReservationRow, ResolutionRow
from headwater.ledger.store import Write, open_writer
from headwater.ledger.writer import LedgerWriter
from tests.unit.ledger.settlements import PARENTS, settlement

DATABASE, ACKS, PLAN = "headwater.db", "acks", "plan"
TOGETHER_MAX = 5
"""So many requests may move at once: some commits hold one submission, some a group."""
WAIT_S = 60.0
HELD_NANOS, CHARGE_NANOS = 1_000, 42
EPOCH = Write(store.INSERT_EPOCH, (1, "gateway", 1_000))


class Request(NamedTuple):
    """A request under way: what it holds, and whether it left marks."""

    held: ReservationRow
    has_marks: bool


def admit(number: int, draw: random.Random) -> tuple[Request, list[Write]]:
    """Reserve for a new request; one in three comes far enough to be marked."""
    held = ReservationRow(
        id=number,
        request_id=f"req_{number}",
        epoch=1,
        organization_id="org_1",
        project_id="prj_1",
        key_id="key_1",
        model="m",
        price_id="prc_1",
        amount_nanos=HELD_NANOS,
        budgets=None,
        lots=None,
        client_request_id=None,
        dialect="openai_chat",
        service_tier="standard",
        is_stream=True,
        choices_count=1,
        tags=None,
        received_at_ms=5_000,
        expires_at_ms=65_000,
    )
    batch, has_marks = Batch(), draw.random() < 1 / 3
    batch.reserve(held)
    if has_marks:
        batch.mark(MarkRow(held.id, "[]", 5_010))
    return Request(held, has_marks), batch.writes()


def settle(requests: Iterable[Request], draw: random.Random) -> list[Write]:
    """End requests in one submission, as the gateway does with those of one turn of its loop."""
    batch = Batch()
    for held, has_marks in requests:
        one = settlement(held.request_id, attempts_count=draw.choice((1, 1, 2, 4)), cost_nanos=CHARGE_NANOS)
        attempts = tuple(row._replace(id=f"att_{held.id}_{at}") for at, row in enumerate(one.attempts))
        resolution = ResolutionRow(held.id, "post", CHARGE_NANOS, 5_030)
        batch.settle(one._replace(attempts=attempts, reservation=held, resolution=resolution, has_marks=has_marks))
    return batch.writes()


class Journal:
    """Submits to the writer, notes what was submitted, and writes down what was acknowledged."""

    def __init__(self, writer: LedgerWriter, path: Path, *, is_split: bool) -> None:
        """is_split: the first row of every submission is committed by itself, which is wrong."""
        self.plan, self._writer, self._is_split = Plan(), writer, is_split
        self._acks = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def submit(self, writes: list[Write]) -> "Future[None]":
        """Submit rows that belong together."""
        number = self.plan.add(writes)
        if self._is_split:
            self._writer.submit(writes[:1]).result(WAIT_S)
            writes = writes[1:]
        done = self._writer.submit(writes)
        done.add_done_callback(partial(self._acknowledge, number))
        return done

    def close(self) -> None:
        """Close the journal."""
        os.close(self._acks)

    def _acknowledge(self, number: int, done: "Future[None]") -> None:
        if done.exception() is None:
            os.write(self._acks, b"%d\n" % number)


def fill(directory: Path, *, commits_count: int, seed: int, synchronous: str = "FULL", is_split: bool = False) -> Plan:
    """Make the database in `directory` and commit to it at least so often; returns what was submitted.

    synchronous and is_split are how it is broken on purpose. Raises whatever the writer fails with: the disk is sound
    here, so a failure is a bug.
    """
    database, draw, failures = directory / DATABASE, random.Random(seed), list[BaseException]()
    ensure_schema(database)
    connection = open_writer(database)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    writer = LedgerWriter(connection, on_fatal=failures.append)
    journal = Journal(writer, directory / ACKS, is_split=is_split)
    writer.start()
    try:
        journal.submit([*PARENTS, EPOCH]).result(WAIT_S)
        under_way, number = list[Request](), 0
        while writer.commits_count < commits_count:
            waiting, ending = set[Future[None]](), under_way
            under_way = []
            while ending:
                together = [ending.pop() for _ in range(min(len(ending), draw.choice((1, 1, 1, 2, 3))))]
                waiting.add(journal.submit(settle(together, draw)))
            for _ in range(draw.randint(1, TOGETHER_MAX)):
                request, writes = admit(number := number + 1, draw)
                waiting.add(journal.submit(writes))
                under_way.append(request)
            for done in wait(waiting, WAIT_S).done:
                done.result()
    finally:
        writer.close()
        journal.close()
    if failures:
        raise failures[0]
    return journal.plan


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m gate.ledger_program")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--commits", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL"), default="FULL")
    parser.add_argument("--split", action="store_true")
    options = parser.parse_args()
    plan = fill(
        options.directory,
        commits_count=options.commits,
        seed=options.seed,
        synchronous=options.synchronous,
        is_split=options.split,
    )
    plan.write(options.directory / PLAN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
