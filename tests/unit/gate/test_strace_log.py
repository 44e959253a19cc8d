import pytest

from gate.strace_log import (
    Ack,
    Create,
    Operation,
    Remove,
    Sync,
    SyncDirectory,
    Truncate,
    UnreadableLog,
    Write,
    read,
)

DATABASE, ACKS = "/d/x.db", "/d/acks"


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


DB, WAL, SHM, FOLDER, TOLD, OTHER = (
    f"3<{hexed(path)}>" for path in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "/d", ACKS, "/e/x.db")
)


def operations(*lines: str) -> list[Operation]:
    return list(read([f"{line}\n".encode() for line in lines], DATABASE, ACKS))


def test_the_life_of_a_database_reads_as_operations() -> None:
    path = f'AT_FDCWD<{hexed("/d")}>, "{hexed("x.db-wal")}"'
    assert operations(
        f"7  openat({path}, O_RDWR|O_CREAT|O_CLOEXEC, 0644) = {WAL}",
        f'7  pwrite64({WAL}, "{hexed("abc")}", 3, 24) = 3',
        f"7  fsync({WAL}) = 0",
        f"7  fsync({FOLDER}) = 0",
        f'7  write({TOLD}, "{hexed("12")}\\x0a", 3) = 3',
        f"7  ftruncate({DB}, 4096) = 0",
        f"7  fdatasync({DB}) = 0",
        f'7  unlink("{hexed(f"{DATABASE}-wal")}") = 0',
        "7  +++ exited with 0 +++",
    ) == [
        Create("-wal"),
        Write("-wal", 24, b"abc"),
        Sync("-wal"),
        SyncDirectory(),
        Ack(12),
        Truncate("", 4096),
        Sync(""),
        Remove("-wal"),
    ]


def test_shared_memory_and_other_files_do_not_count() -> None:
    lines = [f'7  pwrite64({file}, "{hexed("abc")}", 3, 0) = 3' for file in (SHM, OTHER)]
    assert operations(*lines, f'7  write({OTHER}, "{hexed("1")}", 1) = 1') == []


def test_a_failed_call_did_nothing_and_a_short_write_wrote_what_it_says() -> None:
    assert operations(
        f'7  pwrite64({WAL}, "{hexed("abc")}", 3, 0) = -1 EIO (Input/output error)',
        f"7  fsync({WAL}) = -1 EIO (Input/output error) (INJECTED)",
        f'7  pwrite64({WAL}, "{hexed("abc")}", 3, 0) = 2',
    ) == [Write("-wal", 0, b"ab")]


def test_a_sync_counts_from_its_end_and_an_acknowledgement_from_its_beginning() -> None:
    """Otherwise a sync that another thread overtook would save what it was too late for, and blame would go astray."""
    assert operations(
        f"7  fsync({WAL} <unfinished ...>",
        f'8  write({TOLD}, "{hexed("1")}", 1 <unfinished ...>',
        f'9  pwrite64({WAL}, "{hexed("abc")}", 3, 0) = 3',
        "8  <... write resumed>) = 1",
        "7  <... fsync resumed>) = 0",
    ) == [Ack(1), Write("-wal", 0, b"abc"), Sync("-wal")]


def test_an_unfinished_write_keeps_its_data() -> None:
    assert operations(
        f'7  pwrite64({WAL}, "{hexed("abc")}", 3, 8 <unfinished ...>', "7  <... pwrite64 resumed>) = 3"
    ) == [Write("-wal", 8, b"abc")]


@pytest.mark.parametrize(
    "line",
    [
        f"7  fallocate({WAL}, 0, 0, 4096) = 0",
        f'7  pwritev({DB}, [{{iov_base="{hexed("abc")}", iov_len=3}}], 1, 0) = 3',
        f'7  write({WAL}, "{hexed("abc")}", 3) = 3',
        f"7  mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, {DB}, 0) = 0x7f0000000000",
        f'7  pwrite64({WAL}, "{hexed("abc")}"..., 3000, 0) = 3000',
        f'7  pwrite64({WAL}, "abc", 3, 0) = 3',
    ],
)
def test_what_cannot_be_replayed_is_refused(line: str) -> None:
    with pytest.raises(UnreadableLog):
        operations(line)


def test_a_mapping_that_only_reads_is_fine() -> None:
    assert operations(f"7  mmap(NULL, 4096, PROT_READ, MAP_SHARED, {DB}, 0) = 0x7f0000000000") == []
