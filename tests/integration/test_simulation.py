"""T8 at its short size: in any order of events the books are right, over SQLite as in memory, and broken books are caught."""

from gate import simulation
from gate.broken_books import TWINS
from gate.rows import missed
from gate.simulated_run import simulate
from gate.state import State
from tests.integration.gate_runs import Told

SEED = 1


async def test_no_order_of_events_loses_doubles_or_overdraws_anything() -> None:
    state, told = State.in_memory("t8", "short", SEED), Told()
    rows = await simulation.run("short", SEED, state, told)
    assert missed(rows) == [], told.said
    figures = {(row["backend"], row["metric"]): row["value"] for row in rows if row["test"] == "t8"}
    for backend, seeds_count in simulation.SEEDS["short"].items():
        assert figures[backend, "seeds"] == seeds_count
        assert figures[backend, "acknowledged"] > 10 * seeds_count
        assert figures[backend, "crashes"] > seeds_count
        assert figures[backend, "replayed"] > 0
    twins = {row["test"] for row in rows if row["metric"] == "twin_caught"}
    assert twins == {f"t8/{twin}" for twin in TWINS}


async def test_a_seed_replays_identically_and_another_one_does_not() -> None:
    first, again, other = [await simulate(seed) for seed in (5, 5, 6)]
    assert first == again
    assert first.trace != other.trace


def test_every_seed_of_a_full_run_is_run_once() -> None:
    rounds = list(simulation.plan("full", SEED))
    for backend, seeds_count in simulation.SEEDS["full"].items():
        own = [one for one in rounds if one.backend == backend and one.twin is None]
        seeds = [seed for one in own for seed in range(one.first, one.first + one.seeds_count)]
        assert len(seeds) == len(set(seeds)) == seeds_count
    assert len({one.name for one in rounds}) == len(rounds)
