"""Server-sent events, as far as model APIs use them: `data:` lines, however the bytes are cut.

Source: WHATWG HTML §9.2. Event names, ids and retry fields are skipped; each `data:` line is one payload, since no model
API splits a JSON document over several.
"""

LINE_BYTES_MAX = 4 * 2**20
"""A longer line is not a token event; the stream is garbage."""


class LineTooLong(ValueError):
    """The upstream sent more than LINE_BYTES_MAX without a line end."""


class SSEParser:
    """Feeds on chunks of a stream and yields the payloads of its `data:` lines. Pure: no I/O, any chunking parses alike."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by this chunk, in order. Raises LineTooLong."""
        if self._rest:
            data = self._rest + data
        lines = data.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES_MAX:
            raise LineTooLong(f"an event line is longer than {LINE_BYTES_MAX} bytes")
        # A carriage return before the newline is white space to the JSON parser; only the prefix matters here.
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
