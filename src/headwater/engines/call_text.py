"""Follows answer text, character by character, for as long as all of it can still be tool calls that a model wrote out.

What counts as written-out calls, white space anywhere between:

    text   = unit+                                  units of any kind may follow one another
    unit   = bare | ``` info bare ``` | <tool_call> bare </tool_call>
    info   = nothing, json, tool_call or tool_calls, in any case
    bare   = call | [ call, … ]                     one or more
    call   = a JSON object whose keys are all in CALL_KEYS

Anything else, prose before or after included, ends it at its first character. Whether a call names a tool and its
arguments fit is not asked here. Small models write calls like this instead of their template's form.
"""

from enum import Enum, auto
from typing import Final

CALL_KEYS: Final = frozenset({"name", "arguments", "parameters", "function", "type", "id"})
DEPTH_MAX: Final = 64
_INFOS: Final = ("json", "tool_call", "tool_calls")
_FENCE: Final = "```"
_TAG, _END_TAG = "<tool_call>", "</tool_call>"
_SPACE: Final = " \t\r\n"
_ESCAPES: Final = '"\\/bfnrtu'
_SCALAR: Final = frozenset("0123456789+-.eEtrufalsn")


class _At(Enum):
    """Where in the text the scanner stands; the name says what it may read next."""

    UNIT = auto()  # a unit, or the end
    FENCE = auto()
    INFO = auto()
    TAG = auto()
    BARE = auto()  # the JSON of a fence or tag
    VALUE = auto()
    FIRST_VALUE = auto()  # or the end of the array
    KEY = auto()
    FIRST_KEY = auto()  # or the end of the object
    COLON = auto()
    NEXT = auto()  # a comma, or the end of the array or object
    STRING = auto()
    ESCAPE = auto()
    SCALAR = auto()
    CLOSER = auto()  # of a fence or tag, or the end of the text
    DEAD = auto()  # not calls


_ENDS_EMPTY: Final = frozenset({(_At.FIRST_KEY, "}"), (_At.FIRST_VALUE, "]")})


class CallText:
    """What a text may still become. `calls` are the (start, end) positions of the complete call objects so far."""

    def __init__(self) -> None:
        """Nothing read yet."""
        self.calls: list[tuple[int, int]] = []
        self._at = _At.UNIT
        self._position = 0
        self._stack: list[str] = []  # open brackets
        self._word = ""  # what was read of a fence, its info, a tag or a key of a call
        self._closer = ""  # what ends the unit; nothing for a bare one
        self._is_key = False
        self._call_start = 0

    @property
    def is_possible(self) -> bool:
        """Whether everything read can still be calls."""
        return self._at is not _At.DEAD

    @property
    def is_complete(self) -> bool:
        """Whether all of it is calls, to the end; the last fence or tag may lack its closer, but not half of it."""
        return bool(self.calls) and (self._at is _At.UNIT or (self._at is _At.CLOSER and not self._word))

    def read(self, text: str) -> bool:
        """Read more of the text; returns `is_possible`."""
        for character in text:
            self._at = self._next(character)
            if self._at is _At.DEAD:
                return False
            self._position += 1
        return True

    def _next(self, c: str) -> _At:
        match self._at:
            case _At.STRING:  # first: most characters are in strings
                return self._in_string(c)
            case _At.ESCAPE:
                if self._is_key:
                    self._word += "\\" + c
                return _At.STRING if c in _ESCAPES else _At.DEAD
            case _At.UNIT | _At.FENCE | _At.INFO | _At.TAG | _At.BARE | _At.CLOSER:
                return self._outside(c)
            case _:
                return self._in_json(c)

    def _outside(self, c: str) -> _At:
        at = self._at
        if at in (_At.UNIT, _At.BARE, _At.CLOSER) and c in _SPACE and not self._word:
            return at
        match at:
            case _At.UNIT if c == "`":
                self._word, self._closer = c, _FENCE
                return _At.FENCE
            case _At.UNIT if c == "<":
                self._word, self._closer = c, _END_TAG
                return _At.TAG
            case _At.UNIT | _At.BARE if c in "{[":
                self._closer = self._closer if at is _At.BARE else ""
                return self._open(c)
            case _At.FENCE:
                return self._spell(c, _FENCE, then=_At.INFO)
            case _At.TAG:
                return self._spell(c, _TAG, then=_At.BARE)
            case _At.CLOSER:
                return self._spell(c, self._closer, then=_At.UNIT)
            case _At.INFO:
                return self._in_info(c)
        return _At.DEAD

    def _spell(self, c: str, whole: str, *, then: _At) -> _At:
        """Read the next character of a fixed word."""
        self._word += c
        if self._word == whole:
            self._word = ""
            return then
        return self._at if whole.startswith(self._word) else _At.DEAD

    def _in_info(self, c: str) -> _At:
        info = self._word.lower()
        if c in "{[" or c in _SPACE:
            if c in " \t":
                return _At.INFO
            if info and info not in _INFOS:
                return _At.DEAD
            self._word = ""
            return _At.BARE if c in _SPACE else self._open(c)
        self._word += c
        return _At.INFO if any(name.startswith(self._word.lower()) for name in _INFOS) else _At.DEAD

    def _open(self, c: str) -> _At:
        if len(self._stack) >= DEPTH_MAX:
            return _At.DEAD
        if c == "{" and self._is_call_level():
            self._call_start = self._position
        self._stack.append(c)
        return _At.FIRST_KEY if c == "{" else _At.FIRST_VALUE

    def _is_call_level(self) -> bool:
        """Whether an object that opens or ended here is a call: at the top, or in the one array at the top."""
        return not self._stack or self._stack == ["["]

    def _close(self, c: str) -> _At:
        if not self._stack or self._stack.pop() + c not in ("{}", "[]"):
            return _At.DEAD
        if c == "}" and self._is_call_level():
            self.calls.append((self._call_start, self._position + 1))
        if self._stack:
            return _At.NEXT
        return _At.CLOSER if self._closer else _At.UNIT

    def _in_string(self, c: str) -> _At:
        if c == "\\":
            return _At.ESCAPE
        if c == '"':
            if not self._is_key:
                return _At.NEXT
            self._is_key = False
            is_call_key = self._stack not in (["{"], ["[", "{"]) or self._word in CALL_KEYS
            self._word = ""
            return _At.COLON if is_call_key else _At.DEAD
        if c < " ":
            return _At.DEAD
        if self._is_key:
            self._word += c
        return _At.STRING

    def _in_json(self, c: str) -> _At:
        at = self._at
        if at is _At.SCALAR:
            if c in _SCALAR:
                return at
            at = _At.NEXT
        if c in _SPACE:
            return at
        if (at, c) in _ENDS_EMPTY or (at is _At.NEXT and c in "]}"):
            return self._close(c)
        match at:
            case _At.FIRST_KEY | _At.KEY if c == '"':
                self._is_key, self._word = True, ""
                return _At.STRING
            case _At.COLON if c == ":":
                return _At.VALUE
            case _At.NEXT if c == ",":
                return _At.KEY if self._stack[-1] == "{" else _At.VALUE
            case _At.VALUE | _At.FIRST_VALUE:
                return self._value(c)
        return _At.DEAD

    def _value(self, c: str) -> _At:
        if c in "{[" and (c == "{" or self._stack != ["["]):
            return self._open(c)
        if self._stack == ["["]:  # an array of calls has only objects
            return _At.DEAD
        if c == '"':
            return _At.STRING
        return _At.SCALAR if c in "-0123456789tfn" else _At.DEAD
