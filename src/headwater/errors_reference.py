"""The reference page of the errors, made from their classes.

`python -m headwater.errors_reference > docs/reference/errors.md`
"""

import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from headwater.errors import PlatformError

_OPENING: Final = """\
# Errors

<!-- Made by `python -m headwater.errors_reference > docs/reference/errors.md`; a test fails when it is stale. -->

Every error of the API has one shape, the OpenAI API's, and `code` is always a string:

```json
{"error": {"message": "The model 'x' …", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}
```

`param` names the field of the request, or is null. Quote `x-request-id` when you report one. Refusals come in this
order, the first that applies: 405 and 415, 401, 413, 400, 404 and 403, 409 and 422, 503, 429.

Once a stream has begun, its status has been sent: the error then comes as the last event, `data: {"error": …}`, without
a `[DONE]` after it, and what was received until then is settled.

| Status | `type` | `code` | Means | The client should |
| --- | --- | --- | --- | --- |
"""

_CLOSING: Final = """
`Retry-After` holds whole seconds. It comes with `rate_limit_exceeded`, `overloaded`, `no_replica` and
`idempotency_key_in_use`, and with `shutting_down` when a new request is refused.
`401` carries `www-authenticate: Bearer`. Where it is certain whether sending
the request again can help, `x-should-retry` says so, which the official SDKs obey: `false` with `insufficient_quota`,
`above_rate_limit` and `idempotency_key_reused`, `true` with `idempotency_key_in_use`.

Errors of the command line have no codes: they say what happened, why and what now, and the exit code tells scripts
([command line](cli.md)). What an operator does about them: [troubleshoot](../how-to/troubleshoot.md).
"""

_FIX: Final = "Correct the request; sending it again unchanged can't help."
_KEY: Final = "Use another key; retrying can't help."
_WAIT: Final = "Wait `Retry-After` seconds, then retry."
_RETRY: Final = "Retry later, with growing pauses."

ADVICE: Final = {
    "internal_error": "Retry once; report it with its `x-request-id` if it comes again.",
    "invalid_request": _FIX,
    "unsupported_field": "Leave the field out.",
    "unsupported_value": "Choose another value; the message says which.",
    "context_length_exceeded": "Shorten the messages or lower `max_tokens`.",
    "method_not_allowed": "Use the method that the message names.",
    "unsupported_media_type": "Send plain JSON with `content-type: application/json`.",
    "request_too_large": "Send less; the message names the limit.",
    "headers_too_large": "Send fewer and shorter headers; the message names the limit.",
    "not_found": "Correct the path or the id.",
    "model_not_found": "Ask `GET /v1/models` what this key can call.",
    "invalid_api_key": _KEY,
    "model_not_allowed": "Use a model this key is for, or another key.",
    "idempotency_key_in_use": "Wait `Retry-After` seconds, then send the same again for its answer.",
    "idempotency_key_reused": "Use a new key for a new request.",
    "insufficient_quota": "Ask for less, wait for the reset that the message names, or have the budget raised.",
    "rate_limit_exceeded": _WAIT,
    "above_rate_limit": "Shorten the messages, lower `max_tokens`, or have the limit raised.",
    "overloaded": _WAIT,
    "no_replica": _WAIT,
    "upstream_down": _WAIT,
    "shutting_down": "Wait `Retry-After` seconds if given, then retry.",
    "engine_failed": _RETRY,
    "timeout": _RETRY,
    "ledger_unavailable": "Retry later; nothing of the answer counts.",
}


class Special(NamedTuple):
    """A code given where the error is raised, not by its class."""

    of: str
    means: str
    advice: str


SPECIAL: Final = {
    "invalid_json": Special("invalid_request", "The body is not JSON, not UTF-8, or nested too deep.", _FIX),
    "invalid_type": Special("invalid_request", "A field has a value of the wrong type.", _FIX),
    "missing_field": Special("invalid_request", "A required field is missing.", _FIX),
    "invalid_schema": Special("invalid_request", "A JSON schema (of a tool or a response format) is not sound.", _FIX),
    "engine_refused": Special(
        "invalid_request", "The engine or upstream answered 400, 413 or 422; the message has its words.", _FIX
    ),
    "model_unpriced": Special(
        "model_not_allowed",
        "The model has no price, and this platform serves only what has one.",
        "Use a model with a price, or have one set.",
    ),
    "missing_api_key": Special("invalid_api_key", "No key was sent.", "Send `Authorization: Bearer hw-…`."),
    "expired_api_key": Special("invalid_api_key", "The key's time is over.", _KEY),
    "revoked_api_key": Special("invalid_api_key", "The key was revoked.", _KEY),
}


def page() -> str:
    """Return the page, Markdown."""
    return _OPENING + "".join(_rows(PlatformError)) + _CLOSING


def _rows(error: type[PlatformError]) -> Iterator[str]:
    yield _row(error, error.code, (error.__doc__ or "").strip(), ADVICE[error.code])
    for code, special in SPECIAL.items():
        if special.of == error.code:
            yield _row(error, code, special.means, special.advice)
    for child in error.__subclasses__():
        if child.__module__ == PlatformError.__module__:
            yield from _rows(child)


def _row(error: type[PlatformError], code: str, means: str, advice: str) -> str:
    return f"| {error.status} | `{error.type}` | `{code}` | {means} | {advice} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
