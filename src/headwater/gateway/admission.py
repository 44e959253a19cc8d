"""Step 6: is there room for this request, and how many tokens may it produce?

The input bound is cheap and never too low: UTF-8 bytes of all text, 16 for each message, the template's allowance. A
token is at least one byte, so a request whose bound fits surely fits; for one that may not, our own engine is asked to
count (about 3 ms) before anybody is refused.
"""

import asyncio
from typing import NamedTuple

import msgspec
import structlog

from headwater.errors import ContextLengthExceeded, EngineFailed, TimedOut
from headwater.gateway.routing import Target
from headwater.request import Chat

log = structlog.get_logger()

BYTES_PER_MESSAGE = 16
TEMPLATE_BYTES = 512
"""Allowance for what a chat template adds around the messages: a default system prompt, tool instructions."""

COUNT_TIMEOUT_S, COUNT_TRIES_MAX = 5.0, 2
"""Counting takes about 3 ms. A replica that doesn't answer in this time hangs, which the controller will find; another is asked."""


def input_tokens_bound(chat: Chat) -> int:
    """An upper bound of the prompt's tokens, from bytes alone."""
    return chat.text_bytes + BYTES_PER_MESSAGE * len(chat.messages) + TEMPLATE_BYTES


def with_output_cap(chat: Chat, cap_tokens: int) -> Chat:
    """The same payload with the number of output tokens that will be sent to the engine."""
    return msgspec.structs.replace(chat, output_tokens_max=cap_tokens)


def output_cap(chat: Chat, *, input_tokens: int, context_tokens: int | None, default_max: int) -> int:
    """The caller's cap, else the smaller of the default and what the context leaves.

    Raises ContextLengthExceeded when prompt and stated cap, or the prompt and one token, don't fit. Pure.
    """
    stated = chat.output_tokens_max
    if context_tokens is None:
        return default_max if stated is None else stated
    left = context_tokens - input_tokens
    if left < (1 if stated is None else stated):
        wanted = "" if stated is None else f" and {stated} are asked for as output"
        raise ContextLengthExceeded(
            f"The model's context holds {context_tokens} tokens; the messages take {input_tokens}{wanted}.",
            param="messages" if stated is None or left < 1 else "max_tokens",
        )
    return min(default_max, left) if stated is None else stated


class Sized(NamedTuple):
    """A payload whose output cap is decided, and the bound of its input that was used for it.

    is_counted: the bound is the engine's own count, not one from bytes. is_stated: the cap is the caller's.
    """

    chat: Chat
    input_tokens: int
    is_counted: bool
    is_stated: bool


async def decide_output_cap(chat: Chat, target: Target, *, default_max: int) -> Sized:
    """The payload with its output cap decided; asks an own engine to count only when the cheap bound doesn't settle it.

    Raises ContextLengthExceeded, NoReplica.
    """
    bound = input_tokens_bound(chat)
    context_tokens = target.context_tokens
    is_stated = chat.output_tokens_max is not None
    wanted = default_max if chat.output_tokens_max is None else chat.output_tokens_max
    if context_tokens is None or bound + wanted <= context_tokens:
        return Sized(with_output_cap(chat, wanted), bound, is_counted=False, is_stated=is_stated)
    counted = await count_input(chat, target)
    # Unknown and perhaps too long: bytes overshoot tokens several times, so the upstream has the last word.
    input_tokens = 0 if counted is None else counted
    cap = output_cap(chat, input_tokens=input_tokens, context_tokens=context_tokens, default_max=default_max)
    return Sized(
        with_output_cap(chat, cap),
        min(bound, context_tokens) if counted is None else counted,
        is_counted=counted is not None,
        is_stated=is_stated,
    )


async def count_input(chat: Chat, target: Target) -> int | None:
    """The prompt's tokens as an engine of ours counts them; None for somebody else's model, or when no engine says in time.

    Raises NoReplica.
    """
    if not target.is_own:
        return None
    await target.pool.any_member()
    members = sorted(target.pool.members.values(), key=lambda member: member.free_count, reverse=True)
    for member in members[:COUNT_TRIES_MAX]:
        try:
            async with asyncio.timeout(COUNT_TIMEOUT_S):
                return await member.endpoint.count_input_tokens(chat)
        except (EngineFailed, TimedOut, TimeoutError) as error:
            log.warning("count_failed", replica=member.id, error=f"{type(error).__name__}: {error}")
    return None
