"""A publication as clients get it, made once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from roomcast.wire.json import Unencodable
from roomcast.wire.publication import Publication

__all__ = ["DATA_HEAD", "Sent", "encode_publication", "sent_of"]


@dataclass(frozen=True, slots=True)
class Sent:
    """A publication as clients get it.

    `line`: its JSON, which is all that is kept of it. `ts`: when it was appended (ms). `delta`:
    whether it may go out as its difference from the one before it. `data_bytes`: of its data, in
    the line. `text`: of its data, where another text stands in the line.
    """

    offset: int
    line: bytes
    ts: int
    delta: bool = False
    text: bytes | None = None
    data_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return len(self.line) + len(self.text or b"")


# How a publication's line begins; its data follows. So the data can be replaced without decoding.
DATA_HEAD: Final = b'{"data":'


def encode_publication(publication: Publication) -> bytes:
    """The line, without what surrounds it in a push or a reply. Raises Unencodable."""
    try:
        return orjson.dumps(publication.wire())
    except orjson.JSONEncodeError as error:
        raise Unencodable("nested too deeply") from error


def sent_of(publication: Publication, ts: int) -> Sent:
    """`publication`, of an append at `ts` (ms), as clients get it. Raises Unencodable."""
    line = encode_publication(publication)
    assert line.startswith(DATA_HEAD), "the data comes first"
    text = None if publication.text is None else publication.text.encode()
    size = len(orjson.dumps(publication.data))
    return Sent(publication.offset, line, ts, publication.delta, text, size)
