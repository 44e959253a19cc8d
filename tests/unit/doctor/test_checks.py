"""The doctor's judgements: pure, so facts go in and verdicts come out."""

from pathlib import Path

import pytest

from headwater.doctor import checks
from headwater.doctor.checks import Check, DeploymentNeed, DirectoryFacts, PortState, Verdict
from headwater.errors import OperatorError

GIB = 2**30
ADDRESS = "127.0.0.1:8080"


def need(
    name: str = "small", *, weights_bytes: int = GIB, replicas: int = 1, is_estimate: bool = False
) -> DeploymentNeed:
    return DeploymentNeed(
        name=name, weights_bytes=weights_bytes, kv_bytes=GIB, is_estimate=is_estimate, replicas=replicas
    )


def facts(
    *, exists: bool = True, is_directory: bool = True, is_writable: bool = True, mode: int = 0o700
) -> DirectoryFacts:
    path = Path("/srv/headwater/data")
    nearest = path if exists else path.parent
    return DirectoryFacts(path=path, nearest=nearest, is_directory=is_directory, is_writable=is_writable, mode=mode)


def directory(found: DirectoryFacts, *, is_private: bool = True) -> Check:
    return checks.check_directory("data", "store.url", found, is_private=is_private)


@pytest.mark.parametrize(
    ("check", "verdict", "says"),
    [
        (checks.check_python((3, 11, 0)), "ok", "3.11.0"),
        (checks.check_python((3, 10, 14)), "fail", "3.11 or newer"),
        (checks.check_sqlite("3.51.3"), "ok", "3.51.3"),
        (checks.check_sqlite("3.100.0"), "ok", "3.100.0"),
        (checks.check_sqlite("3.51.2"), "fail", "pysqlite3"),
        (checks.check_port(ADDRESS, PortState.FREE), "ok", "free"),
        (checks.check_port(ADDRESS, PortState.OURS), "ok", "held by this platform, which is running"),
        (checks.check_port(ADDRESS, PortState.TAKEN, "Address already in use"), "fail", "gateway.listen"),
        (checks.check_port(ADDRESS, PortState.UNUSABLE, "Permission denied"), "fail", "Permission denied"),
        (directory(facts()), "ok", "writable"),
        (directory(facts(exists=False)), "ok", "will be made"),
        (directory(facts(is_directory=False)), "fail", "is not a directory"),
        (directory(facts(is_writable=False)), "fail", "change store.url"),
        (directory(facts(mode=0o755)), "warn", "chmod 700 /srv/headwater/data"),
        (directory(facts(mode=0o755), is_private=False), "ok", "writable"),
        (checks.check_disk(Path("/d"), 20 * GIB, 5 * GIB), "ok", "5.0 GiB"),
        (checks.check_disk(Path("/d"), 20 * GIB, 0), "ok", "no model is left"),
        (checks.check_disk(Path("/d"), 20 * GIB, None), "ok", "unknown"),
        (checks.check_disk(Path("/d"), 5 * GIB, 5 * GIB), "warn", "a full disk stops the ledger"),
        (checks.check_disk(Path("/d"), 5 * GIB, 7 * GIB), "fail", "2.0 GiB are missing"),
        (checks.check_memory([need()], 8 * GIB, is_running=False), "ok", "small 2.2 GiB"),
        (checks.check_memory([], 8 * GIB, is_running=False), "ok", "No replica"),
        (checks.check_memory([need()], None, is_running=False), "warn", "can't be read"),
        (checks.check_memory([need(replicas=4)], 8 * GIB, is_running=False), "fail", "1.0 GiB are missing"),
        (checks.check_memory([need("a"), need("b")], 4 * GIB, is_running=False), "fail", "a 2.2 GiB, b 2.2 GiB"),
        (checks.check_memory([need(is_estimate=True)], GIB, is_running=False), "warn", "about 2.2 GiB"),
        (checks.check_memory([need()], 2 * GIB + 3 * GIB // 8, is_running=False), "warn", "Little is left"),
        (checks.check_memory([need()], GIB, is_running=True), "ok", "The platform is running"),
        (checks.check_socket_path(Path("/srv/data")), "ok", "at most"),
        (checks.check_socket_path(Path("/" + "d" * 90)), "ok", "temporary directory"),
        (checks.check_socket_path(Path("/" + "d" * 100)), "fail", "store.url"),
        (checks.check_socket_path(Path("/" + "数" * 33)), "fail", "limit"),
        (checks.check_sync([0.0002] * 49 + [0.1]), "ok", "0.20 ms (p50), 100.00 ms (p99)"),
        (checks.check_sync([0.006] * 50), "warn", "local SSD"),
        (checks.check_open_files(None, 512), "ok", "not limited"),
        (checks.check_open_files(20_000, 512), "ok", "1152"),
        (checks.check_open_files(1024, 512), "warn", "ulimit -n 1152"),
        (checks.could_not_check("disk", PermissionError(13, "Permission denied")), "warn", "Permission denied"),
        (checks.check_model("small", OperatorError("No such model.", why="A.", now="B.")), "fail", "deployment small"),
    ],
)
def test_verdict(check: Check, verdict: str, says: str) -> None:
    assert check.verdict == verdict
    assert says in f"{check.what} {check.why} {check.now}"
    if check.verdict is Verdict.FAIL:
        assert check.what, "a failure says what is"
        assert check.why, "a failure says why it matters"
        assert check.now, "a failure says what to do"


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert checks.percentile(values, 0.50) == 50.0
    assert checks.percentile(values, 0.99) == 99.0
    assert checks.percentile([7.0], 0.99) == 7.0
