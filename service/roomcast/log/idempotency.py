"""Idempotency keys, and the items that remember the position of a key's publication.

Theory of operation. Publications with keys are appended in one transaction with their key items, on
condition that all these keys are free. So of all attempts with one key, on any node, one is in the
log. Every later attempt is answered with its position. That holds as long as the key item exists. A
process may be suspended at any point, and one that wakes a day later must not find the key free
again. Hence three bounds on time. A client that retries stops RETRY_WITHIN_MS after its first
attempt. A node does not accept a publication that may have waited longer than UNREAD_WITHIN_MS to
be read. And it sends an accepted one within COMMIT_WITHIN_MS. docs/architecture.md has the whole
argument.

Times in ms since 1970 unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from roomcast.log.item import OFFSET_MAX, AttributeMap, LogItem, MalformedItem
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS
from roomcast.wire.publication import StreamPosition

__all__ = [
    "COMMIT_WITHIN_MS",
    "KEY_LIFE_MS",
    "RETRY_WITHIN_MS",
    "UNREAD_WITHIN_MS",
    "KeyItem",
    "key_items",
    "parse_key_item",
    "stored_key",
]

# The life of a key item. A log item lives at least as long, so a client that was away for a day can
# still get the position of its publication.
KEY_LIFE_MS: Final = 24 * 60 * 60 * 1000
# The time from reading a publication until its append may last be sent. A normal append takes
# milliseconds.
COMMIT_WITHIN_MS: Final = 15 * 60 * 1000
# The time from a client's sending to the node's reading: the longest ping interval, and a
# suspension that no ping reveals.
UNREAD_WITHIN_MS: Final = 75 * 60 * 1000
# The time from the first attempt with a key to the last one. The rest of a key's life is for clocks
# that differ.
RETRY_WITHIN_MS: Final = 22 * 60 * 60 * 1000
assert RETRY_WITHIN_MS + UNREAD_WITHIN_MS + COMMIT_WITHIN_MS + MARGIN_MS <= KEY_LIFE_MS, (
    "no attempt outlives the first one's key"
)
assert KEY_LIFE_MS <= MIN_RETENTION_MS, "a key does not outlive what it tells of"

# Channel names and keys are printable, so neither contains it.
_SEPARATOR: Final = "\n"


@dataclass(frozen=True, slots=True)
class KeyItem:
    """The position of the publication that was made with `key` (see `stored_key`).

    The publication is at (`epoch`, `offset`), and was appended as `batch`.

    `expires_at` in s. The item counts as long as it is in the table, also after that time.
    """

    key: str
    epoch: str
    offset: int
    batch: str
    expires_at: int

    def __post_init__(self) -> None:
        assert self.key, "a key is never empty"
        assert self.epoch, "an epoch is never empty"
        assert 1 <= self.offset <= OFFSET_MAX, "I1: a publication has an offset, from 1"

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.epoch, self.offset)

    def attributes(self) -> dict[str, dict[str, str]]:
        return {
            "key": {"S": self.key},
            "epoch": {"S": self.epoch},
            "offset": {"N": str(self.offset)},
            "batch": {"S": self.batch},
            "expires_at": {"N": str(self.expires_at)},
        }


def stored_key(channel: str, key: str) -> str:
    """A client's key as the table stores it. Each channel has its own keys."""
    return f"{channel}{_SEPARATOR}{key}"


def key_items(item: LogItem, keys: Iterable[str | None]) -> tuple[KeyItem, ...]:
    """The keys that are written together with `item`.

    `keys`: the keys of its publications, in their order; None = no key.
    """
    return tuple(
        KeyItem(
            key=stored_key(item.channel, key),
            epoch=item.epoch,
            offset=item.offset + index,
            batch=item.batch,
            expires_at=(item.ts + KEY_LIFE_MS) // 1000,
        )
        for index, key in enumerate(keys)
        if key is not None
    )


def parse_key_item(attributes: AttributeMap) -> KeyItem:
    """Raises MalformedItem."""
    try:
        key, epoch, batch = (str(attributes[name]["S"]) for name in ("key", "epoch", "batch"))
        offset, expires_at = (int(attributes[name]["N"]) for name in ("offset", "expires_at"))
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedItem("an attribute of a key item is missing or of a wrong type") from error
    if not key or not epoch or not 1 <= offset <= OFFSET_MAX:
        raise MalformedItem("key, epoch or offset of a key item out of range")
    return KeyItem(key=key, epoch=epoch, offset=offset, batch=batch, expires_at=expires_at)
