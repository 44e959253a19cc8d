"""Imports point one way: faces, then services, then pure modules (the layers are explained in `docs/explanation`)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headwater

PACKAGE = Path(headwater.__file__).parent

# What each top-level part may use of the others. A new part or a new arrow is a decision: make it here.
_DATA = {"clock", "errors", "events", "ids", "keys", "money", "replica", "request", "usage"}
MAY_USE = {
    "__init__": set[str](),
    "__main__": {"cli"},
    "admin": {"ledger", "settings"} | _DATA,
    "catalogue": {"__version__", "errors", "settings"},
    "cli": {
        "__version__",
        "admin",
        "catalogue",
        "doctor",
        "engines",
        "gateway",
        "ledger",
        "log",
        "operations",
        "platform",
        "settings",
    }
    | _DATA,
    "clock": set[str](),
    "controller": {"engines"} | _DATA,
    "dialects": {"json_schema", "scheduling", "settings"} | _DATA,
    "doctor": {"catalogue", "errors", "settings"},
    "engines": {"json_schema"} | _DATA,
    "errors": set[str](),
    "errors_reference": {"errors"},
    "events": {"errors", "usage"},
    "gateway": {"dialects", "engines", "ledger", "scheduling", "settings"} | _DATA,
    "housekeeping": set[str](),
    "ids": set[str](),
    "json_schema": set[str](),
    "keys": set[str](),
    "ledger": {"errors", "money", "usage"},
    "log": {"settings"},
    "money": {"usage"},
    "operations": {"admin", "catalogue", "controller", "gateway", "ledger", "reload", "settings"} | _DATA,
    "platform": {"admin", "catalogue", "controller", "gateway", "housekeeping", "ledger", "operations", "settings"}
    | _DATA,
    "reload": {"settings"},
    "replica": set[str](),
    "request": {"scheduling"},
    "scheduling": {"errors", "ids", "money", "request", "usage"},
    "settings": {"errors", "money"},
    "usage": set[str](),
}

PURE = (
    *("errors", "events", "ids", "json_schema", "keys", "money", "replica", "request", "usage"),
    *("dialects.openai_chat", "dialects.openai_chat_answer", "dialects.openai_models", "dialects.fields"),
    *("engines.call_text", "engines.llamacpp", "engines.openai", "engines.openai_stream", "engines.sse"),
    *("engines.tool_calls", "engines.usage_reports", "controller.lifecycle", "gateway.attempt", "gateway.slots"),
    *("controller.liveness", "reload"),
    *("gateway.prefixes",),
    *("gateway.notices", "ledger.book", "ledger.caps", "ledger.charge", "ledger.entries", "ledger.periods"),
    *("ledger.price_map", "ledger.rows", "ledger.wallet"),
    *("scheduling.bands", "scheduling.estimate", "scheduling.fair_queue", "scheduling.floors"),
    *("scheduling.shares", "scheduling.tenants", "gateway.placing"),
    *("scheduling.breaker", "scheduling.retries", "scheduling.shedding"),
    *("scheduling.input_estimate", "scheduling.rate_limits"),
)
DOES_IO = (
    *("asyncio", "httptools", "http.client", "multiprocessing", "pysqlite3", "selectors", "socket"),
    *("sqlite3", "ssl", "starlette", "structlog", "subprocess", "urllib.request", "uvicorn", "uvloop"),
)


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name below the package, file) of every module."""
    for file in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(file.relative_to(PACKAGE).with_suffix("").parts), file


def imported(file: Path) -> set[str]:
    """Every module named by an import anywhere in a file, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def loaded_after(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    environ = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    return set(done.stdout.split())


def test_every_part_uses_only_what_is_below_it() -> None:
    wrong = []
    for name, file in modules():
        part = name.partition(".")[0]
        for used in imported(file):
            root, _, rest = used.partition(".")
            below = rest.partition(".")[0]
            if root == "headwater" and below and below != part and below not in MAY_USE.get(part, set()):
                wrong.append(f"{name} imports headwater.{below}")
    assert not wrong


def test_the_table_of_parts_is_the_package() -> None:
    assert {name.partition(".")[0] for name, _ in modules()} == set(MAY_USE)


def test_gateway_and_controller_do_not_know_each_other() -> None:
    assert "controller" not in MAY_USE["gateway"]
    assert "gateway" not in MAY_USE["controller"]
    loaded = loaded_after("import headwater.gateway.app")
    assert not [name for name in loaded if name.startswith(("headwater.controller", "headwater.admin"))]
    loaded = loaded_after("import headwater.controller.supervisor")
    assert not [name for name in loaded if name.startswith(("headwater.gateway", "headwater.ledger"))]


def test_importing_pure_modules_loads_nothing_that_does_io() -> None:
    loaded = loaded_after("\n".join(f"import headwater.{name}" for name in PURE))
    assert loaded.isdisjoint(DOES_IO)


def test_pure_modules_import_nothing_that_does_io() -> None:
    for name, file in modules():
        if name in PURE or name.startswith("dialects."):
            assert imported(file).isdisjoint({*DOES_IO, "threading"}), name


def test_the_engine_process_loads_no_gateway_and_no_ledger() -> None:
    loaded = loaded_after("import headwater.engines.child")
    ours = {name for name in loaded if name.startswith("headwater.")}
    assert ours == {"headwater.engines", "headwater.engines.child", "headwater.replica"}
    assert loaded.isdisjoint({"aiohttp", "asyncio", "pysqlite3", "xllamacpp"})


@pytest.mark.parametrize("module", ["headwater.platform", "headwater.admin.client"])
def test_the_running_platform_loads_no_library_of_migrations_reports_or_the_command_line(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert loaded.isdisjoint({"alembic", "mako", "sqlalchemy", "sqlite3", "typer", "xllamacpp", "fastapi", "pydantic"})
