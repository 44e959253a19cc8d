"""`explanation/request.md` is the life of a request as the code has it."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import headwater.gateway
from headwater.gateway import calling, chat, engines, life, placing, pool, prefixes, relay
from tests.unit.docs.pages import read, sections

PAGE = read("explanation/request.md")
NAMED = sorted(set(re.findall(r"`(headwater(?:\.\w+)+)`", PAGE)))

# For each step the call that is its entrance, as the code writes it.
ENTRANCES = {
    "1. Headers": ("read_headers", "require_json"),
    "2. Authenticate": ("authenticator.authenticate",),
    "3. Byte cap": ("read_body",),
    "4. Parse": ("openai_chat.parse",),
    "5. Resolve": ("models.resolve",),
    "6. Admit": ("pool.check", "decide_output_cap", "limits.admit"),
    "7. Queue": ("pool.lease",),
    "8. Replica and slot": ("best_slot",),
    "9. Encode": ("llamacpp.encode",),
    "10. Relay": ("decoder.feed", "attempt.observe", "repair.feed", "sink.take"),
    "11. Settle": ("limits.settle", "settler.settle"),
    "12. Last byte": ("sink.finish",),
}
# Calls that are followed into the function they reach: (class they stand in, as written) → function.
FOLLOWED: dict[tuple[Any, str], Any] = {
    (chat.ChatCompletions, "life.run"): life.Life.run,
    (life.Life, "caller.check"): calling.Caller.check,
    (life.Life, "caller.size"): calling.Caller.size,
    (life.Life, "caller.answer"): calling.Caller.answer,
    (calling.Caller, "pool.lease"): pool.Pool.lease,
    (pool.Pool, "placing.place"): placing.Placing.place,
    (placing.Placing, "prefixes.way"): prefixes.Prefixes.way,
    (calling.Caller, "relay"): relay.relay,
    (relay.relay, "endpoint.open"): engines.ReplicaEngine.open,
    (relay.relay, "pass_on"): relay._pass_on,
}


def _calls(function: Any, owner: Any) -> Iterator[str]:
    """The calls a function makes, in the order they are evaluated, following its own methods; handlers are left out."""
    tree = ast.parse(inspect.getsource(function).lstrip()).body[0]
    assert isinstance(tree, ast.AsyncFunctionDef | ast.FunctionDef)
    for statement in tree.body:
        yield from _visit(statement, owner)


def _visit(node: ast.AST, owner: Any) -> Iterator[str]:
    if isinstance(node, ast.ExceptHandler | ast.FunctionDef | ast.Lambda):
        return
    for child in ast.iter_child_nodes(node):
        yield from _visit(child, owner)
    if not isinstance(node, ast.Call):
        return
    written = ".".join(ast.unparse(node.func).replace("self.", "").split(".")[-2:]).replace("_", " ").strip()
    written = re.sub(r" ", "_", re.sub(r"(^|\.) ", r"\1", written))
    yield written
    is_own = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self"
    if is_own and isinstance(node.func, ast.Attribute) and callable(getattr(owner, node.func.attr, None)):
        yield from _calls(getattr(owner, node.func.attr), owner)
    elif (owner, written) in FOLLOWED:
        reached = FOLLOWED[owner, written]
        module = importlib.import_module(reached.__module__)
        yield from _calls(reached, getattr(module, reached.__qualname__.split(".")[0]))


@pytest.mark.parametrize("name", NAMED)
def test_everything_that_is_named_exists(name: str) -> None:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            found = getattr(found, attribute)
        return
    raise AssertionError(name)


def test_every_module_of_the_gateway_is_named() -> None:
    modules = {f"headwater.gateway.{module.name}" for module in pkgutil.iter_modules(headwater.gateway.__path__)}
    assert {module for module in modules if module not in PAGE} == set()


def test_the_page_has_the_twelve_steps_in_order() -> None:
    steps = [heading for heading in sections(PAGE) if heading[0].isdigit()]
    assert steps == list(ENTRANCES)


def test_each_step_names_its_entrance() -> None:
    for heading, calls in ENTRANCES.items():
        text = sections(PAGE)[heading]
        for call in calls:
            function = call.split(".")[-1]
            if (heading, call) != ("10. Relay", "sink.take"):  # named by the two sinks instead
                assert re.search(rf"`headwater\.[\w.]*\.{function}`", text), (heading, function)


def test_the_code_calls_the_steps_in_the_order_of_the_page() -> None:
    calls = list(_calls(chat.ChatCompletions.__call__, chat.ChatCompletions))
    wanted = [call for entrances in ENTRANCES.values() for call in entrances]
    places = []
    for call in wanted:
        assert call in calls, f"{call} is not called on the way from ChatCompletions to the last byte"
        places.append(calls.index(call))
    assert places == sorted(places), list(zip(wanted, places, strict=True))


def test_the_small_endpoints_modules_say_which_step_they_are() -> None:
    for name in ("headers", "auth", "body", "routing", "admission", "pool", "engines", "settle"):
        module = importlib.import_module(f"headwater.gateway.{name}")
        number = re.match(r"Steps? (\d+)", module.__doc__ or "")
        assert number is not None, name
        heading = next(one for one in sections(PAGE) if one.startswith(f"{number[1]}. "))
        assert f"headwater.gateway.{name}" in sections(PAGE)[heading]
