"""Every bad request gets its own clear error in the one shape, in the documented order, and leaves nothing behind."""

import gzip
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from headwater.keys import new_key
from tests.integration.bodies import MESSAGES, chat_body
from tests.rig.clients import Client, Received, call
from tests.rig.platform import Platform, config, running_platform, upstream
from tests.rig.processes import FakeEngineHandle, fake_engine
from tests.unit.dialects.test_openai_chat_bad_input import CASES

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/v1/chat/completions"
BODY_BYTES_MAX = 8 * 2**20
FAST, SLOW = "m:tokens=2", "m:tokens=2000,gap_ms=20"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    async with fake_engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(engine: FakeEngineHandle, module_path: Path) -> AsyncIterator[Platform]:
    text = config(
        upstreams=[
            upstream("fake", engine.base_url, [FAST]),
            upstream("other", engine.base_url, [FAST]),
            upstream("short", engine.base_url, [FAST], context_tokens=100),
            upstream("full", engine.base_url, [SLOW], concurrency_max=1),
        ],
        gateway={"queued_requests_max": 0, "idle_timeout_s": 1.0},
    )
    async with running_platform(text, module_path / "p") as running:
        yield running


@pytest.fixture
def unchanged(platform: Platform, engine: FakeEngineHandle) -> Any:
    """Check afterwards that no record was made and the engine was asked nothing."""
    before = len(platform.records()), len(engine.truth().attempts)
    yield
    assert (len(platform.records()), len(engine.truth().attempts)) == before


async def send(
    platform: Platform,
    body: bytes,
    headers: Mapping[str, str | None] | None = None,
    *,
    method: str = "POST",
    path: str = CHAT,
) -> Received:
    """Send raw bytes with this key unless the headers say otherwise; a header of None isn't sent."""
    fields: dict[str, str | None] = {
        "host": "test",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "authorization": f"Bearer {platform.key}",
        **(headers or {}),
    }
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    async with await Client.connect(platform.base_url) as client:
        await client.send_raw(f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1") + body)
        return await client.read_to_end()


def check(got: Received, status: int, code: str, param: str | None = None) -> None:
    """The answer is that error, in the one shape."""
    assert got.status == status, got.body
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-request-id"].startswith("req_")
    value = got.json()
    assert set(value) == {"error"}
    error = value["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    assert len(error["message"]) > 10
    assert (error["code"], error["param"]) == (code, param)


GOOD = msgspec.json.encode(chat_body(f"fake/{FAST}"))
BAD_JSON = b'{"model": '


@pytest.mark.parametrize(("what", "body", "code", "param", "words"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("unchanged")
async def test_a_bad_body(platform: Platform, what: str, body: bytes, code: str, param: str | None, words: str) -> None:
    got = await send(platform, body)
    check(got, 400, code, param)
    assert words in got.json()["error"]["message"]


@pytest.mark.usefixtures("unchanged")
async def test_a_body_over_the_cap_is_refused_before_it_is_sent(platform: Platform) -> None:
    got = await send(platform, b"", {"content-length": str(BODY_BYTES_MAX + 1), "connection": "close"})
    check(got, 413, "request_too_large")


@pytest.mark.usefixtures("unchanged")
async def test_a_chunked_body_over_the_cap_is_refused_while_it_comes(platform: Platform) -> None:
    async with await Client.connect(platform.base_url) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {platform.key}\r\ntransfer-encoding: chunked\r\n\r\n"
        await client.send_raw(head.encode())
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        try:
            for _ in range(9):
                await client.send_raw(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may close on us as soon as it has answered
        check(await client.read_to_end(), 413, "request_too_large")


@pytest.mark.usefixtures("unchanged")
async def test_a_body_that_stops_coming_gets_its_time_and_no_more(platform: Platform) -> None:
    got = await send(platform, GOOD[:20], {"content-length": str(len(GOOD))})
    check(got, 504, "timeout")


@pytest.mark.parametrize("size", [BODY_BYTES_MAX - 200, 300_000])
async def test_a_large_body_below_the_cap_is_served(platform: Platform, size: int) -> None:
    body = chat_body(f"fake/{FAST}", messages=[{"role": "user", "content": "x" * size}])
    got = await platform.ask(body)
    assert (got.status, got.finish_reason) == (200, "stop")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": None}, "unsupported_media_type"),
        ({"content-type": "text/plain"}, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"content-encoding": "gzip"}, "unsupported_media_type"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_wrong_media_type(platform: Platform, headers: dict[str, str | None], code: str) -> None:
    body = gzip.compress(GOOD) if "content-encoding" in headers else GOOD
    check(await send(platform, body, headers), 415, code)


async def test_a_media_type_with_parameters_is_json_too(platform: Platform) -> None:
    got = await send(platform, GOOD, {"content-type": "application/json; charset=utf-8"})
    assert (got.status, got.finish_reason) == (200, "stop")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.usefixtures("unchanged")
async def test_a_wrong_method(platform: Platform, method: str) -> None:
    got = await send(platform, b"", method=method)
    check(got, 405, "method_not_allowed")
    assert got.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", f"{CHAT}/", f"/v1{CHAT}", "/metrics/x", "/v1/models/"])
@pytest.mark.usefixtures("unchanged")
async def test_a_path_that_is_not_there(platform: Platform, path: str) -> None:
    got = await send(platform, b"", method="GET", path=path)
    assert got.status == 404
    assert got.json()["error"]["code"] in ("not_found", "model_not_found")
    assert got.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"authorization": None}, "missing_api_key"),
        ({"authorization": "Bearer"}, "invalid_api_key"),
        ({"authorization": "Bearer "}, "invalid_api_key"),
        ({"authorization": "Basic aHc6aHc="}, "invalid_api_key"),
        ({"authorization": "Bearer sk-somebody-elses"}, "invalid_api_key"),
        ({"authorization": f"Bearer {new_key().secret}"}, "invalid_api_key"),
        ({"authorization": f"Bearer {new_key().secret}é"}, "invalid_api_key"),
        ({"authorization": None, "x-api-key": "hw-"}, "invalid_api_key"),
        ({"authorization": "Bearer " + "x" * 20_000}, "invalid_api_key"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/usage")])
@pytest.mark.usefixtures("unchanged")
async def test_a_bad_key(platform: Platform, headers: dict[str, str | None], code: str, method: str, path: str) -> None:
    got = await send(platform, GOOD if method == "POST" else b"", headers, method=method, path=path)
    check(got, 401, code)
    assert got.headers["www-authenticate"] == "Bearer"


async def test_a_key_in_the_other_header_opens_too(platform: Platform) -> None:
    got = await send(platform, GOOD, {"authorization": None, "x-api-key": platform.key})
    assert got.status == 200


@pytest.mark.usefixtures("unchanged")
async def test_an_unknown_model(platform: Platform) -> None:
    for name in ("gpt-4", "fake", "fake/m", f"FAKE/{FAST}", "fake/../x", "中文"):
        check(await platform.ask(chat_body(name)), 404, "model_not_found", "model")


@pytest.mark.usefixtures("unchanged")
async def test_more_output_than_the_context_holds(platform: Platform) -> None:
    got = await platform.ask(chat_body(f"short/{FAST}", max_tokens=101, stream=False))
    check(got, 400, "context_length_exceeded", "max_tokens")


async def test_a_key_for_one_model_opens_no_other(platform: Platform, engine: FakeEngineHandle) -> None:
    key = (await platform.create_key("--model", f"fake/{FAST}"))["key"]
    before = len(platform.records()), len(engine.truth().attempts)
    check(await platform.ask(chat_body(f"other/{FAST}"), api_key=key), 403, "model_not_allowed", "model")
    check(await platform.ask(chat_body("nothing"), api_key=key), 404, "model_not_found", "model")
    assert (len(platform.records()), len(engine.truth().attempts)) == before
    headers = {"authorization": f"Bearer {key}"}
    listed = await call(platform.root_url, "GET", "/v1/models", headers=headers)
    assert [model["id"] for model in listed.json()["data"]] == [f"fake/{FAST}"]
    one = await call(platform.root_url, "GET", f"/v1/models/fake/{FAST}", headers=headers)
    assert one.json()["id"] == f"fake/{FAST}"
    other = await call(platform.root_url, "GET", f"/v1/models/other/{FAST}", headers=headers)
    assert other.status in (403, 404)
    assert (await platform.ask(chat_body(f"fake/{FAST}"), api_key=key)).status == 200


async def test_the_first_of_several_faults_is_the_one_that_is_told(platform: Platform) -> None:
    """405/415 → 401 → 413 → 400 → 404/403 → 503, each with every later fault present as well."""
    limited = (await platform.create_key("--model", f"fake/{FAST}"))["key"]
    no_key: dict[str, str | None] = {"authorization": None}
    huge: dict[str, str | None] = {"content-length": str(BODY_BYTES_MAX + 1)}
    full = msgspec.json.encode(chat_body(f"full/{SLOW}"))
    async with await Client.chat(platform.base_url, chat_body(f"full/{SLOW}"), api_key=platform.key) as occupant:
        await occupant.read_tokens(1)
        check(await send(platform, BAD_JSON, {**no_key, "content-type": "x"}, method="PUT"), 405, "method_not_allowed")
        got = await send(platform, BAD_JSON, {**no_key, **huge, "content-type": "x"})
        check(got, 415, "unsupported_media_type")
        check(await send(platform, BAD_JSON, {**no_key, **huge}), 401, "missing_api_key")
        check(await send(platform, BAD_JSON, huge), 413, "request_too_large")
        check(
            await send(platform, b'{"model": "nothing", "messages": [], "n": 99}'), 400, "invalid_request", "messages"
        )
        unknown = msgspec.json.encode({"model": "nothing", "messages": MESSAGES})
        check(await send(platform, unknown, {"authorization": f"Bearer {limited}"}), 404, "model_not_found", "model")
        check(await send(platform, full, {"authorization": f"Bearer {limited}"}), 403, "model_not_allowed", "model")
        got = await send(platform, full)
        check(got, 503, "overloaded")
        assert int(got.headers["retry-after"]) >= 1


async def test_hints_that_are_ignored_are_named(platform: Platform) -> None:
    got = await platform.ask(chat_body(f"fake/{FAST}", user="u1", metadata={"a": "b"}, prompt_cache_key="k"))
    assert got.status == 200
    assert sorted(got.headers["x-headwater-ignored"].split(", ")) == ["metadata", "prompt_cache_key", "user"]
    got = await platform.ask(chat_body(f"fake/{FAST}", stream=False))
    assert "x-headwater-ignored" not in got.headers


async def test_every_answer_has_a_request_id_of_ours_and_keeps_the_clients_own(platform: Platform) -> None:
    for method, path in (
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", "/x"),
    ):
        got = await send(platform, b"", {"x-request-id": "mine"}, method=method, path=path)
        assert got.headers["x-request-id"].startswith("req_"), path
    ids = set()
    for given, stored in (("mine-1", "mine-1"), ("y" * 1000, "y" * 128)):
        got = await platform.ask(chat_body(f"fake/{FAST}"), request_id=given)
        record = await platform.record(got.headers["x-request-id"])
        assert record["client_request_id"] == stored
        ids.add(record["request_id"])
    assert len(ids) == 2
    again = await platform.ask(chat_body(f"fake/{FAST}"), request_id="mine-1")
    assert again.headers["x-request-id"] not in ids, "a client's id is never a key"


async def test_what_nobody_foresaw_is_a_plain_500_with_an_id(engine: FakeEngineHandle, short_path: Path) -> None:
    text = config(upstreams=[upstream("fake", engine.base_url, [FAST])])
    async with running_platform(text, short_path / "p") as platform:
        connection = sqlite.connect(str(platform.database))
        connection.execute("ALTER TABLE api_keys RENAME TO gone")
        connection.close()
        for path, body in ((CHAT, GOOD), ("/v1/models", b"")):
            got = await send(platform, body, method="POST" if body else "GET", path=path)
            check(got, 500, "internal_error")
            assert "gone" not in got.body.decode()
            assert "no such table" not in got.body.decode()
        assert "no such table" in platform.log_tail(100_000)
