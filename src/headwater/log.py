"""Structured logs on standard error: constant event names, facts as fields; JSON for machines, columns for a terminal."""

import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import IO, Any

import msgspec
import structlog

from headwater.settings.model import LogSettings

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: LogSettings) -> None:
    """Set up logging for this process; called once, by whoever starts it."""
    level = _LEVELS[settings.level]
    is_terminal = settings.format == "auto" and sys.stderr.isatty()
    is_console = settings.format == "console" or is_terminal
    if is_terminal:  # who sits there reads what the command prints; a line for each request would bury it
        level = max(level, logging.WARNING)
    processors: list[Any]
    factory: Any
    if is_console:
        processors = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(pad_event_to=0),
        ]
        factory = structlog.PrintLoggerFactory(_lossy(sys.stderr))
    else:
        processors = [_to_json]
        factory = structlog.BytesLoggerFactory(_lossy(sys.stderr.buffer))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    # Libraries log to the standard logger; what they warn of is worth seeing, their routine isn't.
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr)


class _LossyStream:
    """A stream that drops what can't be written.

    A log on a full disk or behind a closed pipe must not fail requests, least of all those being told why they end.
    """

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream

    def write(self, line: Any) -> int:
        """Write, or drop; returns how much was taken."""
        try:
            return self._stream.write(line)
        except OSError:
            return 0

    def flush(self) -> None:
        """Hand on what was written; what can't be is tried again with the next line."""
        try:
            self._stream.flush()
        except OSError:
            return


def _lossy(stream: IO[Any]) -> Any:
    return _LossyStream(stream)


_encode = msgspec.json.Encoder(enc_hook=str).encode


def _to_json(logger: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    """What the four steps above do, in one: a line is written for every request."""
    if "exc_info" in fields:
        fields = structlog.processors.format_exc_info(logger, level, fields)
    fields["level"] = level
    fields["timestamp"] = datetime.now(UTC)
    return _encode(fields)
