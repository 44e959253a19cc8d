"""What the rigs draw: from the seed alone, and enough of everything."""

from collections import Counter

from gate.cut_images import cuts
from gate.disk import STYLES
from gate.io_faults import KS, plan
from gate.strace_log import Ack, Operation, Sync, Write

COMMIT: list[Operation] = [Write("-wal", 32, b"x"), Sync("-wal"), Ack(1), Ack(2)]


def test_the_power_is_cut_at_every_acknowledgement_and_every_sync() -> None:
    chosen = {cut.after for cut in cuts(COMMIT * 50, seed=1)}
    for commit in range(0, 200, 4):
        assert commit + 1 in chosen, "before the sync"
        assert commit + 4 in chosen, "after the last acknowledgement"


def test_cuts_are_drawn_from_the_seed_alone_in_every_style() -> None:
    first = cuts(COMMIT * 50, seed=1)
    assert first == cuts(COMMIT * 50, seed=1)
    assert first != cuts(COMMIT * 50, seed=2)
    assert {cut.style for cut in first} == set(STYLES)


def test_every_k_fails_in_both_ways() -> None:
    rounds = plan(KS["full"], seed=1)
    assert rounds == plan(KS["full"], seed=1)
    assert len({one.name for one in rounds}) == len(rounds) == 400
    kinds = Counter((one.fault.error, one.fault.call, one.fault.is_lasting, one.is_near_checkpoint) for one in rounds)
    assert len(kinds) == 16, "both errors, writes and syncs, once and for good, anywhere and at a checkpoint"
    assert min(kinds.values()) >= 5
    assert any(one.is_held for one in rounds)
