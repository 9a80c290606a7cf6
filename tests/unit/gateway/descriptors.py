"""What happens to a descriptor when its connection is gone: another socket gets its number."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["taken_over"]


@contextmanager
def taken_over(number: int) -> Iterator[None]:
    """Another pair of sockets has the descriptor `number`, which is free. Nothing may come in."""
    other, stranger = socket.socketpair()
    if number not in (other.fileno(), stranger.fileno()):
        # `detach` gives the number away, so that nobody closes it twice.
        before = other.detach()
        os.dup2(before, number)
        os.close(before)
        other = socket.socket(fileno=number)
    with other, stranger:
        yield
        for each in (other, stranger):
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.recv(1)
