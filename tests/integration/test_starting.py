"""A start that can't be says why, what now, and leaves nothing half-done."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.bodies import chat_body
from tests.rig.platform import Platform, Ran, config, headwater, running_platform, upstream
from tests.rig.processes import fake_engine

NOWHERE = "http://127.0.0.1:9/v1"
GOOD = config(upstreams=[upstream("fake", NOWHERE, ["m"])])


async def up(directory: Path, text: str, *arguments: str) -> Ran:
    """Run `headwater up` where it can't start."""
    path = directory / "headwater.toml"
    path.write_text(text)
    return await headwater("up", "--config", str(path), "--no-first-question", *arguments, cwd=directory, check=False)


def check(ran: Ran, status: int, *words: str) -> None:
    """It ended with that status and one clear error."""
    assert ran.status == status, ran
    assert ran.stderr.count("error: ") == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in ran.stderr
    assert len(ran.stderr.splitlines()) >= 2, "what happened, and why or what now"


async def test_a_second_up_on_the_same_directory_names_the_first(short_path: Path) -> None:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, ["m:tokens=3"])])
        async with running_platform(text, short_path / "p") as platform:
            check(await up(platform.directory, text), 1, str(platform.pid), "in use")
            got = await platform.ask(chat_body("fake/m:tokens=3"))
            assert got.finish_reason == "stop", "the first goes on"
            assert (await platform.create_key())["state"] == "active", "and its admin socket is still its own"


async def test_a_taken_port(short_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        check(await up(short_path, GOOD, "--listen", address), 1, address, "gateway.listen")


async def test_an_address_that_is_not_ours(short_path: Path) -> None:
    check(await up(short_path, GOOD, "--listen", "192.0.2.1:8080"), 1, "192.0.2.1")


def _unknown_key(text: str) -> str:
    return text.replace("[gateway]", "[gateway]\nlisen = 3")


def _bad_value(text: str) -> str:
    return text.replace("[gateway]", "[gateway]\nidle_timeout_s = -1")


def _price_of_nothing(text: str) -> str:
    return text.replace('model = "fake/m"', 'model = "fake/other"')


def _twice(text: str) -> str:
    return text + f'[[upstreams]]\nname = "fake"\nbase_url = "{NOWHERE}"\nmodels = ["m"]\n'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_unknown_key, "gateway.lisen"),
        (_bad_value, "gateway.idle_timeout_s"),
        (_price_of_nothing, "fake/other"),
        (_twice, "fake"),
        (lambda text: text + "[[[", "headwater.toml"),
    ],
)
async def test_an_impossible_configuration_names_the_key(
    short_path: Path, change: Callable[[str], str], words: str
) -> None:
    check(await up(short_path, change(GOOD)), 2, words)
    assert not (short_path / "data").exists(), "nothing was made"


@pytest.mark.parametrize("is_directory", [True, False])
async def test_something_else_where_the_admin_socket_goes(short_path: Path, is_directory: bool) -> None:
    path = short_path / "data" / "admin.sock"
    path.parent.mkdir()
    path.mkdir() if is_directory else path.write_text("mine")
    check(await up(short_path, GOOD), 1, "admin.sock", "no socket")
    assert path.exists(), "somebody's file is left as it is"


async def test_a_leftover_socket_of_a_killed_platform_is_no_obstacle(short_path: Path) -> None:
    async with running_platform(GOOD, short_path / "p") as platform:
        await platform.kill()
        assert (platform.directory / "data" / "admin.sock").exists()
        made = await platform.create_key()  # by the files: nobody answers on the socket
        await platform.start()
        assert made["id"] in [key["id"] for key in (await platform.cli("keys", "list", "--json")).json()]
        assert await platform.stop() == 0


async def test_a_path_too_long_for_a_socket(short_path: Path) -> None:
    long = short_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    check(await up(long, GOOD, "--set", f"store.url=sqlite:///{long}/headwater.db"), 1, "shorter path")


async def test_a_file_that_is_no_database(short_path: Path) -> None:
    (short_path / "data").mkdir()
    path = short_path / "data" / "headwater.db"
    path.write_bytes(b"this is no database, whatever its name says\n" * 100)
    before = path.read_bytes()
    check(await up(short_path, GOOD), 1, "headwater.db")
    assert path.read_bytes() == before, "somebody's file is left as it is"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_data_directory_that_cannot_be_written(short_path: Path) -> None:
    (short_path / "data").mkdir(mode=0o500)
    check(await up(short_path, GOOD), 1, "data")


async def test_a_data_directory_that_is_a_file(short_path: Path) -> None:
    (short_path / "data").write_text("not a directory")
    check(await up(short_path, GOOD), 1, "data")


async def test_the_first_start_makes_a_key_shows_it_once_and_it_works(short_path: Path) -> None:
    async with fake_engine() as engine:
        text = config(upstreams=[upstream("fake", engine.base_url, ["m:tokens=3"])])
        platform = Platform(short_path, text)
        try:
            await platform.start()
            async with asyncio.timeout(10.0):
                while "Ctrl-C" not in platform.stdout_path.read_text():  # the last of what it says
                    await asyncio.sleep(0.01)
            said = platform.stdout_path.read_text()
            (key,) = {word.strip('",;()') for word in said.split() if word.strip('",;()').startswith("hw-")}
            assert (await platform.ask(chat_body("fake/m:tokens=3"), api_key=key)).status == 200
            assert await platform.stop() == 0
            platform.stdout_path.write_text("")
            await platform.start()
            assert await platform.stop() == 0
            assert "hw-" not in platform.stdout_path.read_text().replace("hw-…", ""), "never again"
        finally:
            await platform.end()
