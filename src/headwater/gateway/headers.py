"""Step 1: what we read of a request's headers, and what we send with every answer."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from headwater.errors import InvalidRequest, UnsupportedMediaType

REQUEST_ID_CHARACTERS_MAX = 128
TAGS_HEADER = "x-headwater-tags"
TAGS_COUNT_MAX = 8
TAG = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Headers(msgspec.Struct, frozen=True):
    """The few request headers that matter here, decoded as Latin-1; absent ones are None."""

    authorization: str | None = None
    api_key: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    content_length: int | None = None
    client_request_id: str | None = None
    idempotency_key: str | None = None
    tags: str | None = None


_FIELDS = {
    b"authorization": "authorization",
    b"x-api-key": "api_key",
    b"content-type": "content_type",
    b"content-encoding": "content_encoding",
    b"content-length": "content_length",
    b"x-request-id": "client_request_id",
    b"idempotency-key": "idempotency_key",
    b"x-headwater-tags": "tags",
}


def read_headers(scope: Mapping[str, Any]) -> Headers:
    """Pick our headers out of an ASGI scope (names are lower-case there)."""
    found: dict[str, Any] = {}
    for name, value in scope["headers"]:
        field = _FIELDS.get(name)
        if field is not None:
            text = value.decode("latin-1")
            # A list may come in several headers of one name, which mean the same as one (RFC 9110 §5.3).
            found[field] = f"{found[field]},{text}" if field == "tags" and field in found else text
    if "content_length" in found:
        found["content_length"] = int(found["content_length"])  # digits: the HTTP parser saw to that
    if "client_request_id" in found:
        # Stored beside our own id and never a key; printable and bounded because it lands in logs.
        text = found["client_request_id"][:REQUEST_ID_CHARACTERS_MAX]
        found["client_request_id"] = text if text.isprintable() else None
    return Headers(**found)


def read_tags(headers: Headers) -> tuple[str, ...]:
    """The tags a caller names, separated by commas or spaces, each once. Raises InvalidRequest for what can't be one."""
    if headers.tags is None:
        return ()
    tags = tuple(dict.fromkeys(headers.tags.replace(",", " ").split()))
    if len(tags) > TAGS_COUNT_MAX:
        raise InvalidRequest(
            f"{TAGS_HEADER} names {len(tags)} tags; at most {TAGS_COUNT_MAX} may be.", param=TAGS_HEADER
        )
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise InvalidRequest(
                f"{TAGS_HEADER}: {tag[:100]!r} is no tag; a tag has 1 to 64 letters, digits, `.`, `_`, `:` or `-`.",
                param=TAGS_HEADER,
            )
    return tags


def require_json(headers: Headers) -> None:
    """Raise UnsupportedMediaType unless the body is said to be plain JSON."""
    media_type = (headers.content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        given = f"{headers.content_type[:100]!r}" if headers.content_type else "none"
        raise UnsupportedMediaType(f"The content-type must be application/json; given: {given}.")
    if headers.content_encoding not in (None, "identity"):
        raise UnsupportedMediaType(
            f"Compressed bodies are not accepted (content-encoding {headers.content_encoding[:50]!r}); send plain JSON."
        )
