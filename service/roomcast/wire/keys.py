"""Idempotency keys: the rule for valid ones."""

from __future__ import annotations

from typing import Final

__all__ = ["KEY_CHARS_MAX", "is_valid_key"]

# Room for a UUID with a prefix. DynamoDB's own limit, for channel and key together, is 2,048 bytes.
KEY_CHARS_MAX: Final = 64


def is_valid_key(key: str) -> bool:
    """1 to 64 printable ASCII characters."""
    return 0 < len(key) <= KEY_CHARS_MAX and key.isascii() and key.isprintable()
