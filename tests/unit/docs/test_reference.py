"""The hand-written reference pages hold what the code has: routes, metrics, log events, tables."""

import ast
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import pytest
from starlette.routing import Route

from headwater.clock import SystemClock
from headwater.gateway.app import Gateway
from headwater.gateway.telemetry import Telemetry
from headwater.ledger.book import Book
from headwater.ledger.migrate import main as migrate
from headwater.ledger.rows import Settlement, UsageRow
from headwater.ledger.schema import metadata
from headwater.ledger.store import open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.replica import ReplicaState, ReplicaStatus
from headwater.settings import load
from headwater.usage import Outcome, Usage, UsageSource
from tests.unit.docs.pages import ROOT, codes, read, rows, sections

LEVELS = ("debug", "info", "warning", "error", "critical", "exception")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with the default deployment, wired as the platform does; nothing is served."""
    database = tmp_path / "headwater.db"
    migrate(database)
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    settings = load(config_path=None, environ={}).settings
    gateway = Gateway(settings, writer=writer, database=database, book=Book(), epoch=1, clock=SystemClock())
    yield gateway
    await gateway.close()
    writer.close()


async def test_the_api_page_has_every_route_and_no_other(gateway: Gateway) -> None:
    routes: set[str] = set()
    for route in gateway.router.routes:
        assert isinstance(route, Route)
        routes |= {f"{method} {route.path}" for method in (route.methods or set()) - {"HEAD"}}
    listed = [codes(row[0])[0] for row in rows(read("reference/api.md"), "Endpoint")]
    assert set(listed) == routes
    assert len(listed) == len(routes)


async def test_the_api_page_says_which_endpoints_need_a_key(gateway: Gateway) -> None:
    said = {codes(row[0])[0].split(" ")[1]: row[1] == "needed" for row in rows(read("reference/api.md"), "Endpoint")}
    for route in gateway.router.routes:
        assert isinstance(route, Route)
        assert said[route.path] == (getattr(route.endpoint, "_authenticator", None) is not None)


def _settled() -> Settlement:
    record = UsageRow(
        *("req_1", None, "org_1", "prj_1", "key_1", "openai_chat", "qwen-small"),
        is_stream=True,
        choices_count=1,
        outcome="ok",
        error_code=None,
        usage_source="reported",
        usage=Usage(uncached_input=3, cache_read=1, output=2),
        price_id=None,
        cost_nanos=None,
        received_at_ms=0,
        queue_ms=0,
        ttft_ms=1,
        duration_ms=2,
    )
    return Settlement(record, ())


async def test_the_metrics_page_has_every_metric_with_its_type_and_labels(
    gateway: Gateway,
) -> None:
    telemetry: Telemetry = gateway.telemetry
    telemetry.settled(_settled())
    telemetry.refused("invalid_api_key")
    telemetry.call_ended("qwen-small", 2, 0.1)
    gateway.report("qwen-small", [ReplicaStatus("rep_1", "qwen-small", ReplicaState.READY, "", 0)])
    found: dict[str, tuple[str, set[str]]] = {}
    for family in telemetry.registry.collect():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    listed = {
        codes(name)[0]: (kind, set(codes(labels)))
        for name, kind, labels, _ in rows(read("reference/metrics.md"), "Metric")
    }
    assert listed == found


def test_the_pages_name_only_metrics_that_are_there() -> None:
    known = {codes(row[0])[0] for row in rows(read("reference/metrics.md"), "Metric")}
    for page in (ROOT / "docs").rglob("*.md"):
        named = set(re.findall(r"\bheadwater_(?:gateway|ledger|replica)\w+", page.read_text(encoding="utf-8")))
        assert named <= known, page


def _logged() -> dict[str, tuple[set[str], set[str]]]:
    """Every event in the source: the levels it is logged at (empty where the code chooses) and its fields."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in (ROOT / "src" / "headwater").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "structlog" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            function, event = node.func, str(node.args[0].value)
            if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "log":
                assert function.attr in LEVELS, f"{path}: log.{function.attr}"
                levels = {"error" if function.attr == "exception" else function.attr}
            elif isinstance(function, ast.Name) and function.id == "level":
                levels = set()
            else:
                continue
            known = found.setdefault(event, (set(), set()))
            known[0].update(levels)
            known[1].update(keyword.arg for keyword in node.keywords if keyword.arg is not None)
    return found


def test_the_log_page_has_every_event_with_its_level_and_fields() -> None:
    logged = _logged()
    assert len(logged) > 5
    listed = {
        codes(event)[0]: (set(levels.split(", ")), set(codes(fields)))
        for event, levels, fields, _ in rows(read("reference/log-events.md"), "Event")
    }
    assert set(listed) == set(logged)
    for event, (levels, fields) in logged.items():
        assert listed[event][1] == fields, event
        assert not levels or listed[event][0] == levels, event


def test_every_log_event_is_in_troubleshoot() -> None:
    page = read("how-to/troubleshoot.md")
    named = {code for row in rows(page, "Event") for code in codes(row[0])}
    assert set(_logged()) <= named


def test_the_database_page_has_every_table_and_column() -> None:
    parts = {heading.strip("`"): text for heading, text in sections(read("reference/database.md")).items()}
    assert list(parts) == [table.name for table in metadata.sorted_tables] or set(parts) == set(metadata.tables)
    for name, table in metadata.tables.items():
        listed = [(codes(column)[0], kind, null) for column, kind, null, _ in rows(parts[name], "Column")]
        columns = [
            (
                column.name,
                "BLOB" if str(column.type) == "BLOB" else str(column.type),
                "yes" if column.nullable else "no",
            )
            for column in table.columns
        ]
        assert listed == columns, name


def test_the_words_of_a_record_are_explained() -> None:
    page = read("explanation/usage.md")
    words = {code for row in rows(page, "Word") for code in codes(row[0])}
    assert words == set(get_args(Outcome)) | set(get_args(UsageSource))
