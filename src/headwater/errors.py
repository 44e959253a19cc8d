"""Every error that a caller can meet, and the one place where its status, type and code are decided.

    PlatformError                         500 server_error            internal_error
    ├── InvalidRequest                    400 invalid_request_error   invalid_request, or its cause: invalid_json |
    │                                                                 invalid_type | missing_field | invalid_schema
    │   ├── UnsupportedField              400                         unsupported_field
    │   ├── UnsupportedValue              400                         unsupported_value
    │   ├── ContextLengthExceeded         400                         context_length_exceeded
    │   ├── MethodNotAllowed              405                         method_not_allowed
    │   ├── UnsupportedMediaType          415                         unsupported_media_type
    │   ├── BodyTooLarge                  413                         request_too_large
    │   ├── HeadTooLarge                  431                         headers_too_large
    │   ├── NotFound                      404                         not_found
    │   │   └── ModelNotFound             404                         model_not_found
    │   ├── IdempotencyKeyInUse           409                         idempotency_key_in_use        (Retry-After)
    │   └── IdempotencyKeyReused          422                         idempotency_key_reused
    ├── AuthenticationFailed              401 authentication_error    invalid_api_key, or missing_, expired_, revoked_api_key
    ├── PermissionDenied                  403 permission_error        model_not_allowed, or model_unpriced
    ├── InsufficientQuota                 429 insufficient_quota      insufficient_quota   (x-should-retry: false)
    ├── RateLimitExceeded                 429 rate_limit_error        rate_limit_exceeded  (Retry-After)
    │   └── AboveRateLimit                429                         above_rate_limit     (x-should-retry: false)
    ├── Overloaded                        503 server_error            overloaded           (Retry-After)
    ├── NoReplica                         503 server_error            no_replica           (Retry-After)
    ├── UpstreamDown                      503 server_error            upstream_down        (Retry-After)
    ├── Draining                          503 server_error            shutting_down        (Retry-After)
    ├── EngineFailed                      502 server_error            engine_failed
    ├── TimedOut                          504 server_error            timeout
    └── LedgerUnavailable                 503 server_error            ledger_unavailable

The shape on the wire is `{"error": {"message", "type", "param", "code"}}` (the OpenAI API's), `code` always a string.
Errors of the configuration and of the command line are `ConfigError` and `OperatorError`: a person reads those, not a client.
"""

from typing import ClassVar


class PlatformError(Exception):
    """The platform failed in a way it has no better word for; the caller may retry."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    should_retry: ClassVar[bool | None] = None
    """Sent as `x-should-retry`, which the official SDKs obey; None leaves it to them."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        fault: str | None = None,
    ) -> None:
        """message: what was wrong, the limit, the value given; param: the request field; retry_after_s: as `Retry-After`.

        fault: of a call to an engine, what went wrong there (`scheduling/retries.py`); None: it isn't known, or there was none.
        """
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.fault = fault
        if code is not None:
            self.code = code


class InvalidRequest(PlatformError):
    """The request is malformed; sending it again unchanged can't help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class UnsupportedField(InvalidRequest):
    """A field this platform neither honours nor may ignore."""

    code = "unsupported_field"


class UnsupportedValue(InvalidRequest):
    """A known field with a value this model or platform can't honour."""

    code = "unsupported_value"


class ContextLengthExceeded(InvalidRequest):
    """The prompt and the requested output do not fit the model's context."""

    code = "context_length_exceeded"


class MethodNotAllowed(InvalidRequest):
    """The path exists, this method on it doesn't."""

    status = 405
    code = "method_not_allowed"


class UnsupportedMediaType(InvalidRequest):
    """The body is not said to be JSON, or is compressed."""

    status = 415
    code = "unsupported_media_type"


class BodyTooLarge(InvalidRequest):
    """The body is over the byte cap; it was not parsed."""

    status = 413
    code = "request_too_large"


class HeadTooLarge(InvalidRequest):
    """The request's header fields are over the byte cap."""

    status = 431
    code = "headers_too_large"


class NotFound(InvalidRequest):
    """No such path or object, for this caller."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No model of that name can be called here."""

    code = "model_not_found"


class IdempotencyKeyInUse(InvalidRequest):
    """A request with this idempotency key is being served; its answer will be there for the asking."""

    status = 409
    code = "idempotency_key_in_use"
    should_retry = True


class IdempotencyKeyReused(InvalidRequest):
    """This idempotency key was used for another request body."""

    status = 422
    code = "idempotency_key_reused"
    should_retry = False


class AuthenticationFailed(PlatformError):
    """No key, or one that doesn't open anything."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(PlatformError):
    """The key is good, but not for this."""

    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class InsufficientQuota(PlatformError):
    """A budget or the prepaid credit can't pay for the request; asking again can't help before the reset."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False


class RateLimitExceeded(PlatformError):
    """A rate limit of the key, its project, its organization or the model is used up until its window ends."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class AboveRateLimit(RateLimitExceeded):
    """The request may take more tokens than a whole rate limit allows: it can never fit."""

    code = "above_rate_limit"
    should_retry = False


class Overloaded(PlatformError):
    """A queue, a bound on requests or connections is full, or the platform is short of time or memory."""

    status = 503
    code = "overloaded"


class NoReplica(PlatformError):
    """The model is configured but no replica of it can answer now."""

    status = 503
    code = "no_replica"


class UpstreamDown(PlatformError):
    """The upstream has failed too often of late, or asked to be left alone; nothing is sent to it for a moment."""

    status = 503
    code = "upstream_down"


class Draining(PlatformError):
    """The gateway is shutting down and takes nothing new."""

    status = 503
    code = "shutting_down"


class EngineFailed(PlatformError):
    """The engine or upstream answered with an error, garbage, or not to the end."""

    status = 502
    code = "engine_failed"


class TimedOut(PlatformError):
    """A time-out of the request ran out: connect, first byte, idle or total (the message says which)."""

    status = 504
    code = "timeout"


class LedgerUnavailable(PlatformError):
    """The settlement could not be made durable, so the answer is not given."""

    status = 503
    code = "ledger_unavailable"


class OperatorError(Exception):
    """Something a person at the command line must decide or mend: what happened, why, what now."""

    def __init__(self, what: str, *, why: str = "", now: str = "") -> None:
        """what: what happened; why: its cause; now: the next step. Each one sentence or more, in prose."""
        super().__init__(" ".join(part for part in (what, why, now) if part))
        self.what, self.why, self.now = what, why, now


class ConfigError(OperatorError):
    """An impossible configuration; the start stops and the key is named."""
