"""API keys as text: `hw-` + 43 characters of 256 random bits + 6 of checksum. Pure.

The checksum lets us (and secret scanners) tell a mistyped or invented key from a real one without a look-up; what is
stored is the SHA-256 of the whole text. After GitHub's token format (github.blog, 2021).
"""

import hashlib
import secrets
import zlib
from typing import NamedTuple

PREFIX = "hw-"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_LENGTH, _CHECK_LENGTH = 43, 6
KEY_LENGTH = len(PREFIX) + _RANDOM_LENGTH + _CHECK_LENGTH
HINT_LENGTH = 8


class NewKey(NamedTuple):
    """A key that was just made: `secret` is shown once and then forgotten."""

    secret: str
    hash: bytes
    hint: str


def new_key() -> NewKey:
    """Make a key from 256 bits of the system's randomness."""
    body = _base62(secrets.randbits(256), _RANDOM_LENGTH)
    secret = f"{PREFIX}{body}{_check(body)}"
    return NewKey(secret, hash_key(secret), secret[:HINT_LENGTH])


def hash_key(secret: str) -> bytes:
    """SHA-256 of the key's text, 32 bytes; 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


def is_well_formed(secret: str) -> bool:
    """Whether the text could be a key of ours: length, prefix and checksum."""
    if len(secret) != KEY_LENGTH or not secret.startswith(PREFIX) or not secret.isascii():
        return False
    return secret[-_CHECK_LENGTH:] == _check(secret[len(PREFIX) : -_CHECK_LENGTH])


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
