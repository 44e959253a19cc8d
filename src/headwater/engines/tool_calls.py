"""Makes tool calls of answer text in which a model wrote them out, and only where that is safe to say.

Small models write a fenced or bare JSON object where their template asks for another form, so engines return it as
text. `ToolCallRepair` turns one choice's events into what the caller should see. The rules:

- Text is held back only from the very start of the answer, only while all of it can still be calls (`call_text`), and
  for at most HELD_CHARACTERS_MAX characters; then it is released unchanged, event by event, with its log probabilities.
- A call is made only of a declared name with arguments that fit its schema (`json_schema.Fit` says what is not asked),
  only if the whole answer is calls, and only if the model ended it itself. Prose before or after, one wrong call among
  several, a length cut: all stay text.
- Where one call is allowed (`parallel_tool_calls: false`, or a named tool) and several were written, the first is made
  and the text after it is released as text, so nothing is lost.
- `required` and named choices: the engine was given `enforced_schema` as a grammar. The same rules hold, without the
  bound, and a length cut becomes what OpenAI sends: the calls so far, the last with partial arguments if its name is
  complete, and `length`.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from headwater import json_schema
from headwater.engines.call_text import CallText
from headwater.events import Event, Failed, Finished, FinishReason, Text, ToolCallDelta
from headwater.request import Tool, ToolChoice

HELD_CHARACTERS_MAX: Final = 16_384
"""About 4,096 tokens. Counted in characters, so that how an engine cuts its text into events changes nothing."""

ENFORCED_CHARACTERS_MAX: Final = 2**20
PARALLEL_CALLS_MAX: Final = 16
"""Most calls an enforced answer may hold; a small model in a loop would otherwise fill its whole output."""

_PARTIAL_CALL: Final = re.compile(
    r'[\s,\[]*\{\s*"name"\s*:\s*"([a-zA-Z0-9_-]{1,64})"\s*(?:,\s*(?:"arguments"\s*(?::\s*(.*))?)?)?', re.DOTALL
)


class ToolCallRepair:
    """Transforms the events of one choice.

    Give it every event in order; if the stream ends without `Finished`, call `finish`.
    """

    def __init__(
        self, tools: Sequence[Tool], choice: ToolChoice, new_call_id: Callable[[], str], is_parallel: bool | None
    ) -> None:
        """is_parallel: None is the API's default, several calls allowed.

        Without tools, or with choice none, events pass untouched.
        """
        offered = tools if choice.mode != "named" else [tool for tool in tools if tool.name == choice.name]
        self._fits = {tool.name: json_schema.Fit(tool.parameters) for tool in offered}
        self._new_call_id = new_call_id
        self._is_single = is_parallel is False or choice.mode == "named"
        self._is_enforced = choice.mode in ("required", "named")
        self._characters_max = ENFORCED_CHARACTERS_MAX if self._is_enforced else HELD_CHARACTERS_MAX
        self._is_holding = bool(tools) and choice.mode != "none"
        self._held: list[Text] = []
        self._held_count = 0
        self._scan = CallText()

    def feed(self, event: Event) -> list[Event]:
        """What the caller should see of one event, now."""
        if not self._is_holding:
            return [event]
        if isinstance(event, Text):
            return self._hold(event)
        if isinstance(event, Finished):
            return self._end(event)
        if isinstance(event, ToolCallDelta | Failed):  # the engine makes its own calls, or the answer is over
            return [*self._release(), event]
        return [event]

    def finish(self) -> list[Event]:
        """What is still held, as text: the stream ended without `Finished`."""
        return self._release()

    def _hold(self, event: Text) -> list[Event]:
        self._held.append(event)
        self._held_count += len(event.text)
        if self._held_count <= self._characters_max and self._scan.read(event.text):
            return []
        return self._release()

    def _release(self) -> list[Event]:
        held: list[Event] = [*self._held]
        self._held = []
        self._is_holding = False
        return held

    def _end(self, finished: Finished) -> list[Event]:
        source = "".join(event.text for event in self._held)
        made: list[Event] = []
        reason: FinishReason = finished.reason
        if finished.reason in ("stop", "tool_calls") and self._scan.is_complete:
            made, reason = self._calls(source), "tool_calls"
        elif finished.reason == "length" and self._is_enforced:
            made = self._cut_calls(source)
        if not made:
            return [*self._release(), finished]
        self._held = []
        self._is_holding = False
        return [*made, Finished(reason)]

    def _calls(self, source: str) -> list[Event]:
        """The calls of a complete text, then the text left over; empty if one of the calls is none."""
        spans = self._scan.calls[:1] if self._is_single else self._scan.calls
        made: list[Event] = []
        for start, end in spans:
            call = self._call(source[start:end])
            if call is None:
                return []
            name, arguments = call
            made.append(ToolCallDelta(len(made), self._new_call_id(), name, arguments))
        if len(spans) < len(self._scan.calls):
            made.append(Text(source[spans[-1][1] :]))
        return made

    def _cut_calls(self, source: str) -> list[Event]:
        """The calls of a text that was cut: the complete ones, and the last as far as it came."""
        made: list[Event] = []
        position = 0
        for start, end in self._scan.calls[:1] if self._is_single else self._scan.calls:
            call = self._call(source[start:end])
            if call is None:
                return []
            made.append(ToolCallDelta(len(made), self._new_call_id(), *call))
            position = end
        if made and self._is_single:
            return made
        partial = _PARTIAL_CALL.match(source, position)
        if partial is not None and partial[1] in self._fits:
            made.append(ToolCallDelta(len(made), self._new_call_id(), partial[1], partial[2] or ""))
        return made

    def _call(self, source: str) -> tuple[str, str] | None:
        """(name, arguments) of one call object; None when it names no declared tool or its arguments don't fit."""
        try:
            value = msgspec.json.decode(source)
        except msgspec.DecodeError:
            return None
        found = _name_and_arguments(value)
        if found is None:
            return None
        name, arguments = found
        fit = self._fits.get(name)
        if fit is None or not fit.fits(arguments):
            return None
        # Not msgspec: it can't write whole numbers above 64 bits, which a model may well produce.
        return name, json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


def _name_and_arguments(value: Any) -> tuple[str, dict[str, Any]] | None:
    """The name and arguments of a call object in a form we know; None for any other object.

    Known: `{"name", "arguments"}`, the same with `parameters` (Llama), each with an optional `id` and `"type":
    "function"`, and OpenAI's `{"function": {…}}`. Arguments may be an object or, as OpenAI has them, JSON text of one.
    """
    if (
        not isinstance(value, dict)
        or value.get("type", "function") != "function"
        or not isinstance(value.get("id", ""), str)
    ):
        return None
    inner = {key: item for key, item in value.items() if key not in ("type", "id")}
    if inner.keys() == {"function"}:
        inner = inner["function"]
        if not isinstance(inner, dict):
            return None
    if inner.keys() not in ({"name", "arguments"}, {"name", "parameters"}):
        return None
    name, arguments = inner["name"], inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            return None
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def enforced_schema(tools: Sequence[Tool], choice: ToolChoice, is_parallel: bool | None) -> dict[str, Any]:
    """The JSON schema that an answer must fit when the caller requires a call (`required` or named).

    One object `{"name": …, "arguments": …}`; an array of 1 to PARALLEL_CALLS_MAX of them only when is_parallel is True,
    because a small model asked for an array tends to repeat itself. The key order is the order in which a grammar lets
    the model write. References within a tool's schema are rewritten to where that schema now stands.
    """
    offered = [tool for tool in tools if choice.mode == "required" or tool.name == choice.name]
    if is_parallel is not True or choice.mode == "named":
        return _one_call(offered, "#")
    return {"type": "array", "minItems": 1, "maxItems": PARALLEL_CALLS_MAX, "items": _one_call(offered, "#/items")}


def _one_call(tools: Sequence[Tool], pointer: str) -> dict[str, Any]:
    if len(tools) == 1:
        return _call_of(tools[0], pointer)
    return {"anyOf": [_call_of(tool, f"{pointer}/anyOf/{number}") for number, tool in enumerate(tools)]}


def _call_of(tool: Tool, pointer: str) -> dict[str, Any]:
    arguments = json_schema.moved(tool.parameters, f"{pointer}/properties/arguments")
    if not arguments:  # no parameters were declared: the API calls that an empty parameter list
        arguments = {"properties": {}, "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": {"type": "object", **arguments}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
