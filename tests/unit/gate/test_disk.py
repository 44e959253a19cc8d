import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gate.disk import SECTOR_BYTES, STYLES, Disk, Style
from gate.strace_log import Create, Operation, Remove, Sync, SyncDirectory, Truncate, Write

LOTS = 200


def disk_after(*operations: Operation) -> Disk:
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return disk


def images(disk: Disk, style: Style) -> list[dict[str, bytes]]:
    """Many draws of one style."""
    return [disk.image(random.Random(lot), style) for lot in range(LOTS)]


SYNCED = (Create("db"), Write("db", 0, b"old." * 512), Sync("db"))


@pytest.mark.parametrize("style", STYLES)
def test_what_was_synced_is_in_every_image(style: Style) -> None:
    disk = disk_after(*SYNCED)
    assert disk.is_clean
    assert images(disk, style) == [{"db": b"old." * 512}] * LOTS


def test_the_unsynced_is_dropped_or_kept() -> None:
    disk = disk_after(*SYNCED, Write("db", 4, b"new."))
    assert not disk.is_clean
    assert disk.image(random.Random(0), "dropped") == {"db": b"old." * 512}
    assert disk.image(random.Random(0), "kept") == {"db": b"old.new." + b"old." * 510}


def test_a_write_tears_at_sectors_and_nowhere_else() -> None:
    """Any subset of its sectors may have reached the disk, the later without the earlier too."""
    disk = disk_after(*SYNCED, Write("db", 0, b"new!" * 512))
    seen = set()
    for image in images(disk, "sectors"):
        data = image["db"]
        assert len(data) == 2048
        sectors = [data[at : at + SECTOR_BYTES] for at in range(0, 2048, SECTOR_BYTES)]
        assert set(sectors) <= {b"old." * 128, b"new!" * 128}
        seen.add(tuple(sector[:1] for sector in sectors))
    assert len(seen) == 16, "all subsets of four sectors"


def test_a_later_write_can_survive_an_earlier_one() -> None:
    disk = disk_after(*SYNCED, Write("db", 0, b"1" * 512), Write("db", 512, b"2" * 512))
    survivors = {(data[0] == ord("1"), data[512] == ord("2")) for data in (one["db"] for one in images(disk, "writes"))}
    assert survivors == {(False, False), (True, False), (False, True), (True, True)}


def test_a_sector_never_holds_what_never_was() -> None:
    """It was written as a whole each time: with the second write in it, the first one is in it as well."""
    disk = disk_after(*SYNCED, Write("db", 0, b"1" * 8), Write("db", 8, b"2" * 8))
    for style in STYLES:
        for image in images(disk, style):
            assert image["db"][:16] in (b"old." * 4, b"1" * 8 + b"old." * 2, b"1" * 8 + b"2" * 8)


def test_the_size_may_be_older_or_newer_than_the_data() -> None:
    disk = disk_after(*SYNCED, Write("db", 2048, b"x" * 512), Write("db", 2560, b"y" * 512))
    seen = {image["db"] for image in images(disk, "writes")}
    assert {len(data) for data in seen} == {2048, 2560, 3072}
    assert b"old." * 512 + bytes(512) in seen, "a size without its data reads as zeros"


def test_a_file_whose_name_is_not_durable_may_be_missing_and_a_sync_of_it_saves_the_name() -> None:
    disk = disk_after(Create("db"), Write("db", 0, b"abc"))
    assert {frozenset(image) for image in images(disk, "writes")} == {frozenset(), frozenset({"db"})}
    disk.apply(Sync("db"))
    assert {frozenset(image) for image in images(disk, "writes")} == {frozenset({"db"})}


def test_a_removed_file_comes_back_until_the_directory_is_synced() -> None:
    disk = disk_after(*SYNCED, SyncDirectory(), Remove("db"))
    assert disk.image(random.Random(0), "dropped") == {"db": b"old." * 512}
    assert disk.image(random.Random(0), "kept") == {}
    disk.apply(SyncDirectory())
    assert disk.image(random.Random(0), "dropped") == {}


def test_a_file_made_anew_under_a_removed_name_starts_empty() -> None:
    disk = disk_after(*SYNCED, Remove("db"), Create("db"), Write("db", 0, b"n"))
    assert disk.image(random.Random(0), "kept") == {"db": b"n"}
    assert disk.image(random.Random(0), "dropped") == {"db": b"old." * 512}


OPERATIONS = st.lists(
    st.one_of(
        st.builds(Write, st.just("db"), st.integers(0, 3000), st.binary(min_size=1, max_size=1500)),
        st.builds(Truncate, st.just("db"), st.integers(0, 3000)),
        st.just(Sync("db")),
    ),
    max_size=12,
)


@given(OPERATIONS, st.integers(), st.sampled_from(STYLES))
def test_kept_is_what_was_written_and_a_sync_makes_every_image_that(
    operations: list[Operation], lot: int, style: Style
) -> None:
    plain = bytearray()
    for operation in operations:
        if isinstance(operation, Write):
            plain.extend(bytes(max(0, operation.offset + len(operation.data) - len(plain))))
            plain[operation.offset : operation.offset + len(operation.data)] = operation.data
        elif isinstance(operation, Truncate):
            plain.extend(bytes(max(0, operation.size - len(plain))))
            del plain[operation.size :]
    disk = disk_after(Create("db"), *operations)
    assert disk.image(random.Random(lot), "kept") == {"db": bytes(plain)}
    disk.image(random.Random(lot), style)  # whatever was drawn, nothing of it stays
    disk.apply(Sync("db"))
    assert disk.image(random.Random(lot), style) == {"db": bytes(plain)}
