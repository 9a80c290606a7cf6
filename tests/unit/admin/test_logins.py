"""Attempts to log in: each address, and all together, at a rate; few at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from roomcast.admin.logins import EACH, TOGETHER, WAITING_MAX, Logins, Verdict
from roomcast.admin.passwords import PASSWORD_BYTES_MAX
from tests.unit.worlds import until


class Hash:
    """A PasswordHash that costs nothing, and can be made to wait."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = threading.Event()
        self.go.set()

    def is_of(self, password: bytes) -> bool:
        self.asked += 1
        assert self.go.wait(20)
        return password == b"right"


@pytest.fixture
def expected() -> Hash:
    return Hash()


@pytest.fixture
def logins(expected: Hash) -> Iterator[Logins]:
    made = Logins(expected, 0.0)  # type: ignore[arg-type]  # it verifies as one does
    yield made
    expected.go.set()
    made.close()


async def test_the_right_password_is_right(logins: Logins) -> None:
    assert await logins.judge(["1.2.3.4"], b"right", 0.0) == Verdict(True)
    assert await logins.judge(["1.2.3.4"], b"wrong", 0.0) == Verdict(False)


async def test_an_address_has_a_few_attempts_and_then_has_to_wait(
    logins: Logins, expected: Hash
) -> None:
    for _ in range(int(EACH.burst)):
        assert (await logins.judge(["1.2.3.4"], b"wrong", 0.0)).wait_s == 0
    # The right one is not even looked at.
    refused = await logins.judge(["1.2.3.4"], b"right", 0.0)
    assert not refused.is_right
    assert refused.wait_s == pytest.approx(1 / EACH.per_s)
    assert expected.asked == EACH.burst
    assert (await logins.judge(["5.6.7.8"], b"right", 0.0)).is_right
    assert (await logins.judge(["1.2.3.4"], b"right", refused.wait_s + 1)).is_right


async def test_all_addresses_together_have_a_rate(logins: Logins, expected: Hash) -> None:
    for number in range(int(TOGETHER.burst)):
        assert (await logins.judge([f"10.0.0.{number}"], b"wrong", 0.0)).wait_s == 0
    assert (await logins.judge(["10.1.0.1"], b"right", 0.0)).wait_s > 0
    assert expected.asked == TOGETHER.burst
    assert (await logins.judge(["10.1.0.1"], b"right", 1 / TOGETHER.per_s + 1)).is_right


async def test_few_wait_for_the_one_that_is_judged(logins: Logins, expected: Hash) -> None:
    expected.go.clear()
    judging = [
        asyncio.create_task(logins.judge([f"10.0.0.{number}"], b"right", 0.0))
        for number in range(WAITING_MAX + 1)
    ]
    await until(lambda: expected.asked)
    assert (await logins.judge(["10.0.1.1"], b"right", 0.0)).wait_s > 0
    # One thread: the others have not begun.
    assert expected.asked == 1
    expected.go.set()
    assert [(await each).is_right for each in judging] == [True] * (WAITING_MAX + 1)


async def test_what_is_too_long_is_wrong_and_not_hashed(logins: Logins, expected: Hash) -> None:
    assert await logins.judge(["1.2.3.4"], b"x" * (PASSWORD_BYTES_MAX + 1), 0.0) == Verdict(False)
    assert expected.asked == 0
