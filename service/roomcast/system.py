"""The real clock and real randomness, behind the ports that the rest of the code takes them from."""

from __future__ import annotations

import random
import secrets
import time

__all__ = ["SystemClock", "new_id", "new_nonce", "random_fraction"]

# 80 bits: enough that no two ids of a fleet ever meet.
_ID_BYTES = 10
_NONCE_BYTES = 4


class SystemClock:
    """The Clock of a real process."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def new_id() -> str:
    """Fresh random text of [0-9a-f]."""
    return secrets.token_hex(_ID_BYTES)


def new_nonce() -> str:
    """Short random text that tells one start of a node from the next."""
    return secrets.token_hex(_NONCE_BYTES)


def random_fraction() -> float:
    """[0, 1), for jitter only."""
    return random.random()  # spreads load, hides nothing
