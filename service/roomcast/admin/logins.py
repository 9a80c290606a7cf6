"""Judges passwords: few at a time, and at a rate for each address and for all together.

A guess costs 0.2 s of a core and 32 MiB. So one is judged at a time, in a thread, and few may wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from roomcast.admin.passwords import PASSWORD_BYTES_MAX, PasswordHash
from roomcast.rates import Bucket, Rate, Turnstile

__all__ = ["ADDRESSES_MAX", "EACH", "TOGETHER", "WAITING_MAX", "Logins", "Verdict"]

# Attempts of one address: people mistype. In a day it has some 1,400 guesses.
EACH: Final = Rate(per_s=1 / 60, burst=5.0)
# Attempts of all addresses, so that many of them guess no faster than 20,000 a day. While they use
# this up, nobody logs in; who is logged in stays so.
TOGETHER: Final = Rate(per_s=0.25, burst=20.0)
# Addresses in memory: some 0.5 MB.
ADDRESSES_MAX: Final = 2048
# Passwords that wait for the one that is being judged.
WAITING_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """`is_right`: the password. `wait_s` above 0: it was not judged; try again after so long."""

    is_right: bool
    wait_s: float = 0.0


class Logins:
    """One a node. `expected`: the hash of the right password."""

    def __init__(self, expected: PasswordHash, now_s: float) -> None:
        self._expected = expected
        self._addresses = Turnstile(EACH, ADDRESSES_MAX)
        self._together = Bucket(TOGETHER, now_s)
        # Not the event loop's own, which others need. A thread starts with the first password.
        self._thread = ThreadPoolExecutor(1, "admin-login")
        self._waiting = 0

    async def judge(self, names: Sequence[str], password: bytes, now_s: float) -> Verdict:
        """`names`: the address and its networks, as a Turnstile takes them. `now_s`: monotonic."""
        if self._waiting > WAITING_MAX:
            return Verdict(is_right=False, wait_s=1.0)
        wait_s = self._together.wait_s(TOGETHER, now_s) or self._addresses.wait_s(names, now_s)
        if wait_s > 0:
            return Verdict(is_right=False, wait_s=wait_s)
        self._together.take(TOGETHER, now_s)
        if len(password) > PASSWORD_BYTES_MAX:
            return Verdict(is_right=False)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            is_right = await loop.run_in_executor(self._thread, self._expected.is_of, password)
        finally:
            self._waiting -= 1
        return Verdict(is_right)

    def close(self) -> None:
        """Nothing is judged any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
