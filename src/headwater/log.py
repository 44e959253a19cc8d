"""Structured logs on standard error: constant event names, facts as fields; JSON for machines, columns for a terminal."""

import logging
import sys
from typing import Any

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
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    factory: Any
    if is_console:
        processors.append(structlog.dev.ConsoleRenderer(pad_event_to=0))
        factory = structlog.PrintLoggerFactory(sys.stderr)
    else:
        processors.append(structlog.processors.JSONRenderer(serializer=_to_json))
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    # Libraries log to the standard logger; what they warn of is worth seeing, their routine isn't.
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr)


def _to_json(fields: dict[str, Any], **_options: Any) -> bytes:
    return msgspec.json.encode(fields, enc_hook=str)
