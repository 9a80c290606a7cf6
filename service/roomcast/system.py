"""The real clock and real randomness, which implement the ports of time and randomness."""

from __future__ import annotations

import os
import random
import secrets
import time

__all__ = ["SystemClock", "new_id", "new_nonce", "random_fraction"]

# 80 bits: enough that no two ids of a fleet ever collide.
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
    return os.urandom(_ID_BYTES).hex()


def new_nonce() -> str:
    """Short random text that distinguishes one start of a node from the next."""
    return secrets.token_hex(_NONCE_BYTES)


def random_fraction() -> float:
    """[0, 1), for jitter only."""
    return random.random()  # spreads load, hides nothing
