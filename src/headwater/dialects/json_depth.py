"""How deep JSON is nested, told from its bytes before anything decodes it."""

from typing import Final

_LEAF_PASSES: Final = 4
_ALL_BUT_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))
_IRRELEVANT: Final = bytes(sorted(set(range(256)) - set(b'[]{}"\\/bfnrtu')))
"""What says nothing of where strings end: all but brackets, quotes, backslashes and the letters that may follow those."""

_TO_SQUARE: Final = bytes.maketrans(b"{}", b"[]")


def is_deeper(body: bytes, depth_max: int) -> bool:
    """Whether JSON text nests arrays and objects deeper than depth_max.

    Exact for valid JSON. On invalid JSON it never says no where a decoder would go deeper than depth_max before it
    finds the fault, and may say yes four levels early. Linear time, no recursion; a body with few brackets costs one
    pass.
    """
    outside = body.translate(_TO_SQUARE, _IRRELEVANT)
    if outside.count(b"[") <= depth_max:
        return False
    if b"\\" in outside:  # escapes exist only within strings: without them, quotes alone say what is a string
        outside = outside.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(outside.split(b'"')[::2]).translate(None, _ALL_BUT_BRACKETS)
    levels_removed = 0
    while b"[]" in brackets and levels_removed < min(_LEAF_PASSES, depth_max):
        brackets = brackets.replace(b"[]", b"")  # takes off exactly the leaves, so exactly one level, at C speed
        levels_removed += 1
    depth, rest_max = 0, depth_max - levels_removed
    for byte in brackets:
        depth += 1 if byte == 91 else -1
        if depth > rest_max:
            return True
    return False
