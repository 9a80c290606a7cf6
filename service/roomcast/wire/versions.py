"""Versions of publications, by which an application says which of its states is newer."""

from __future__ import annotations

from typing import Final

from roomcast.frozen import frozen

__all__ = ["VERSION_EPOCH_CHARS_MAX", "VERSION_MAX", "Version", "version_of"]

# The same range as in Centrifugo's API.
VERSION_MAX: Final = 2**64 - 1
# Each later item of the channel's log carries it.
VERSION_EPOCH_CHARS_MAX: Final = 64


@frozen
class Version:
    """The version of a publication: `number`, from 1, among those of `epoch`.

    `epoch` "": the number alone counts. It has nothing to do with the epochs of the log.
    """

    number: int
    epoch: str = ""


def version_of(number: int, epoch: str) -> Version | None:
    """What a publisher says; None = nothing, which is number 0 in Centrifugo's API."""
    return Version(number, epoch) if number else None
