"""A publication in the clients' form, encoded once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from roomcast.wire.json import dumps
from roomcast.wire.publication import Publication

__all__ = ["DATA_HEAD", "Sent", "encode_publication", "sent_of"]


@dataclass(frozen=True, slots=True)
class Sent:
    """A publication in the clients' form.

    `line`: its JSON, the only kept form. `ts`: the time of its append (ms). `delta`: whether it may
    be sent as a delta to the previous one. `data_bytes`: the length of its data in the line.
    `text`: the data's text, if the line contains another one.
    """

    offset: int
    line: bytes
    ts: int
    delta: bool = False
    text: bytes | None = None
    data_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.line) + len(self.text or b"")


# The beginning of a publication's line, directly before its data. So the data can be replaced
# without decoding.
DATA_HEAD: Final = b'{"data":'


def encode_publication(publication: Publication) -> bytes:
    """The line, without what surrounds it in a push or a reply. Raises Unencodable."""
    return dumps(publication.wire())


def sent_of(publication: Publication, ts: int) -> Sent:
    """`publication`, of an append at `ts` (ms), in the clients' form. Raises Unencodable."""
    line = encode_publication(publication)
    assert line.startswith(DATA_HEAD), "the data comes first"
    text = None if publication.text is None else publication.text.encode()
    size = len(orjson.dumps(publication.data))
    return Sent(publication.offset, line, ts, publication.delta, text, size)
