"""`headwater up` as a newcomer meets it: from an empty directory to an answer, what is printed works, and Ctrl-C ends it all."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.person import MODELS_DIRECTORY, SMOL, Up, children, environ_for, is_alive, until, up
from tests.integration.model_source import serve

pytestmark = pytest.mark.model

ANYWHERE = ["--listen", "127.0.0.1:0"]
SECOND_START_S_MAX = 20.0
"""The promise is 6 s on a quiet machine; what it took is printed."""
KEY = re.compile(r"hw-[A-Za-z0-9]{20,}")
ANSWER = re.compile(r"^You\s+(\S.*)\n(?:.*\n)*?qwen-small\s+(\S.*)$", re.MULTILINE)


def printed_curl(out: str) -> str:
    """The curl command as it stands on the screen, both lines."""
    found = re.search(r"^curl .*\\\n.*$", out, re.MULTILINE)
    assert found is not None, out
    return found[0]


def printed_python(out: str) -> str:
    """The five lines of Python."""
    found = re.search(r"^from openai import OpenAI\n(?:.*\n){4}", out, re.MULTILINE)
    assert found is not None, out
    return found[0]


def group_of(platform: Up) -> set[int]:
    """Every process of the platform: itself and its children."""
    return {platform.pid, *children(platform.pid)}


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the first start, for the second one."""
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def first_key(lived_in: Path, figure_of_module: Callable[[str], None]) -> str:
    """A first start in an empty directory, on a terminal; everything it promises is tried. Returns its key."""
    with up(lived_in, arguments=ANYWHERE, on_terminal=True) as platform:
        ready_s = platform.wait_ready()
        out = platform.out
        figure_of_module(f"first start (with measuring the engine and a first answer): {ready_s:.1f} s")
        key = platform.api_key
        assert set(KEY.findall(out)) == {key}, "one key"
        assert "shown once" in out
        asked = ANSWER.search(out)
        assert asked is not None, f"a question and its answer: {out}"
        assert len(asked[2].split()) >= 3

        answer = subprocess.run(
            ["sh", "-c", printed_curl(out)], capture_output=True, text=True, timeout=120, check=True, env=environ_for()
        )
        assert '"object":"chat.completion"' in answer.stdout
        assert '"finish_reason":"stop"' in answer.stdout

        lines = printed_python(out)
        assert len(lines.splitlines()) == 5
        said = subprocess.run(
            [sys.executable, "-c", lines], capture_output=True, text=True, timeout=120, check=True, env=environ_for()
        )
        assert said.stdout.strip(), "the example prints an answer"

        for advice in ("headwater usage", "headwater keys list", "headwater doctor"):
            assert advice in out
            ran = platform.command(*shlex.split(advice)[1:])
            assert ran.returncode == 0, f"{advice}: {ran.stdout}{ran.stderr}"
        assert platform.rows("SELECT count(*) AS n FROM usage_records WHERE outcome = 'ok'") == [{"n": 3}]

        processes = group_of(platform)
        assert len(processes) == 2
        pressed_s = time.monotonic()
        platform.press_ctrl_c()
        assert platform.wait_exit() == 0
        figure_of_module(f"Ctrl-C to the end: {time.monotonic() - pressed_s:.2f} s")
        assert not any(map(is_alive, processes)), "no process is left behind"
        assert "Stopping" in platform.out
        assert "Traceback" not in platform.out
    assert sorted(path.name for path in (lived_in / "data").iterdir() if path.is_socket()) == []
    return key


def test_a_first_start_does_what_it_prints_and_ctrl_c_leaves_nothing(first_key: str) -> None:
    assert KEY.fullmatch(first_key)


def test_a_second_start_shows_no_key_and_says_how_to_make_one(
    lived_in: Path, first_key: str, figure: Callable[[str], None]
) -> None:
    with up(lived_in, arguments=ANYWHERE, on_terminal=True) as platform:
        ready_s = platform.wait_ready()
        figure(f"second start, ready: {ready_s:.1f} s")
        assert ready_s <= SECOND_START_S_MAX
        out = platform.out
        assert not KEY.search(out)
        advice = re.search(r"headwater keys create[ \w-]*", out)
        assert advice is not None
        made = platform.command(*shlex.split(advice[0])[1:])
        assert made.returncode == 0, made.stderr
        assert KEY.fullmatch(made.stdout.strip())
        curl = subprocess.run(
            ["sh", "-c", printed_curl(out)],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env=environ_for(HEADWATER_API_KEY=made.stdout.strip()),
        )
        assert '"object":"chat.completion"' in curl.stdout, "the printed line takes the key from the environment"
        processes = group_of(platform)
        platform.press_ctrl_c()
        assert platform.wait_exit() == 0
        assert not any(map(is_alive, processes))


def test_a_second_start_asks_its_question_with_the_key_in_the_environment(
    lived_in: Path, first_key: str, figure: Callable[[str], None]
) -> None:
    with up(lived_in, arguments=ANYWHERE, environ=environ_for(HEADWATER_API_KEY=first_key)) as platform:
        figure(f"second start with a first answer: {platform.wait_ready():.1f} s")
        assert ANSWER.search(platform.out)
        assert first_key not in platform.out + platform.log, "a key that was given is not shown"
        engine_pids = [pid for pids in platform.engines().values() for pid in pids]
        platform.process.kill()
        killed_s = time.monotonic()
        platform.wait_exit()
        until(lambda: not any(map(is_alive, engine_pids)), timeout_s=10, what="the end of an orphaned engine")
        gone_s = time.monotonic() - killed_s
    figure(f"engine gone {gone_s:.2f} s after kill -9 of its parent")
    assert len(engine_pids) == 1
    assert gone_s <= 2.0


def test_after_kill_9_the_next_start_is_a_normal_one(lived_in: Path, first_key: str) -> None:
    with up(lived_in, arguments=[*ANYWHERE, "--no-first-question"]) as platform:
        platform.wait_ready()
        assert platform.get("/ready")[0] == 200
        kept = platform.rows("SELECT count(*) AS n FROM usage_records")[0]["n"]
        assert kept >= 4, "what was acknowledged before the kill is there"


def test_a_second_up_on_the_same_directory_refuses_and_names_the_first(real: Up) -> None:
    ran = real.command("up", *ANYWHERE)
    assert ran.returncode == 1
    assert str(real.pid) in ran.stderr
    assert "in use" in ran.stderr


def test_ctrl_c_while_loading_ends_it_all(tmp_path: Path) -> None:
    with up(tmp_path, arguments=ANYWHERE, on_terminal=True) as platform:
        until(lambda: "Loading" in platform.out and platform.engines(), timeout_s=30, what="a loading engine")
        processes = group_of(platform)
        platform.press_ctrl_c()
        assert platform.wait_exit() == 0
        assert not any(map(is_alive, processes))
        assert "Traceback" not in platform.out


def test_ctrl_c_drains_and_a_second_one_hurries(tmp_path: Path) -> None:
    config = f"""
    [[deployments]]
    name = "smol"
    model = "{SMOL}"
    batch_tokens = 32
    """
    with up(tmp_path, config=config, arguments=[*ANYWHERE, "--no-first-question"], on_terminal=True) as platform:
        platform.wait_ready()
        question = '{"model":"smol","stream":true,"messages":[{"role":"user","content":"Tell a very long story."}]}'
        argv = [
            "curl",
            "-sN",
            f"{platform.base_url}/chat/completions",
            "-H",
            f"Authorization: Bearer {platform.api_key}",
        ]
        argv += ["-H", "Content-Type: application/json", "-d", question]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            assert curl.stdout.readline().startswith(b"data: ")
            processes = group_of(platform)
            platform.press_ctrl_c()
            until(lambda: "Stopping" in platform.out, timeout_s=10, what="the word that it stops")
            platform.press_ctrl_c()
            rest = curl.stdout.read().decode()
        assert platform.wait_exit(20) == 0
        assert not any(map(is_alive, processes))
        last = [line for line in rest.splitlines() if line.startswith("data: ")][-1]
        assert "shutting_down" in last or last == "data: [DONE]", f"a cut stream says so: {last}"


SMALL_DISK = "exec unshare --user --map-root-user --mount sh -c 'mount -t tmpfs -o size=8m tmpfs {} && exec \"$@\"' sh"
"""What follows runs in a mount name space of its own, where a directory is a disk of 8 MB; no right is needed for it."""


def test_a_disk_too_small_for_the_model_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    prefix = SMALL_DISK.format(shlex.quote(str(place)))
    if subprocess.run(["sh", "-c", f"{prefix} true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no user name spaces; tests of `models pull` fill a disk in another way")
    with serve(b"not asked for") as hub:
        settings = environ_for(place, HEADWATER_MODELS__HUGGINGFACE_ENDPOINT=hub.address)
        with up(tmp_path / "there", arguments=ANYWHERE, environ=settings, shell_prefix=f'{prefix} "$@";') as platform:
            assert platform.wait_exit() == 1
            said = platform.log
        assert hub.asked == []
    assert "Traceback" not in said
    assert "no room" in said
    assert "491," in said or "496," in said, "how much it needs"
    assert str(place) in said
    assert not list((tmp_path / "there" / "data").glob("*.sock"))


class TestCommandsBesideIt:
    """The other commands while a platform runs."""

    def test_doctor_finds_the_running_platform_in_order(self, real: Up) -> None:
        ran = real.command("doctor")
        assert ran.returncode == 0, ran.stdout
        checks = json.loads(real.command("doctor", "--json").stdout)
        assert {check["name"] for check in checks} >= {"port", "disk", "memory", "sqlite", "data"}
        assert not [check for check in checks if check["verdict"] == "fail"]

    def test_models_list_and_verify(self, real: Up) -> None:
        listed = {model["name"]: model for model in json.loads(real.command("models", "list", "--json").stdout)}
        assert listed[SMOL]["state"] == "ready"
        assert Path(listed[SMOL]["path"]).is_relative_to(MODELS_DIRECTORY)
        ran = real.command("models", "verify", SMOL, "--json")
        assert ran.returncode == 0
        (verdict,) = json.loads(ran.stdout)
        assert verdict["is_intact"] is True

    def test_usage_is_what_the_records_add_up_to(self, real: Up) -> None:
        sums = {one["model"]: one for one in json.loads(real.command("usage", "--json").stdout)}
        rows = real.rows("SELECT model, count(*) AS n, sum(output) AS output FROM usage_records GROUP BY model")
        assert {row["model"]: (row["n"], row["output"]) for row in rows} == {
            name: (one["requests_count"], one["output_tokens"]) for name, one in sums.items()
        }

    def test_a_revoked_key_opens_nothing_from_then_on(self, real: Up) -> None:
        made = json.loads(real.command("keys", "create", "--name", "short-lived", "--json").stdout)
        probe = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{real.base_url}/models"]
        probe += ["-H", f"Authorization: Bearer {made['key']}"]
        assert subprocess.run(probe, capture_output=True, text=True, check=True).stdout == "200"
        assert real.command("keys", "revoke", made["id"]).returncode == 0
        assert subprocess.run(probe, capture_output=True, text=True, check=True).stdout == "401"


def test_sigterm_is_as_good_as_ctrl_c(tmp_path: Path) -> None:
    config = f'[[deployments]]\nname = "smol"\nmodel = "{SMOL}"\nbatch_tokens = 32\n'
    with up(tmp_path, config=config, arguments=[*ANYWHERE, "--no-first-question"]) as platform:
        platform.wait_ready()
        processes = group_of(platform)
        platform.process.send_signal(signal.SIGTERM)
        assert platform.wait_exit() == 0
        assert not any(map(is_alive, processes))
