"""Which headers of clients are passed on to hooks over HTTP, and what a request then has.

Nothing is passed on but what the configuration names. Values are checked again: those that a client
gives as emulated headers never went through a parser of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from roomcast.config.proxy_options import ProxyConfig

__all__ = ["HEADER_CHARS_MAX", "PassedHeaders", "headers_for", "is_value"]

# Of one value: more than servers take of a whole header.
HEADER_CHARS_MAX: Final = 8192
_COOKIE: Final = "cookie"


class PassedHeaders:
    """The headers that any hook may want, which a connection therefore keeps. Names are in small
    letters.
    """

    __slots__ = ("emulated", "named")

    def __init__(self, proxies: Iterable[ProxyConfig] = ()) -> None:
        given = tuple(proxies)
        self.named = _small(name for each in given for name in each.http_headers)
        self.emulated = _small(name for each in given for name in each.emulated_headers)

    def of_request(self, fields: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """Of the header fields of a client's request, those that are passed on.

        Fields of one name become one, as HTTP has it (RFC 9110 §5.3).
        """
        if not self.named:
            return {}
        found: dict[str, str] = {}
        for name, value in fields:
            small = name.lower()
            if small in self.named and is_value(value):
                between = "; " if small == _COOKIE else ", "
                found[small] = f"{found[small]}{between}{value}" if small in found else value
        return found

    def of_connect(self, given: Mapping[str, str]) -> Mapping[str, str]:
        """The same of the headers that a client emulates. They are a claim of the client's."""
        if not self.emulated:
            return {}
        return {
            name.lower(): value
            for name, value in given.items()
            if name.lower() in self.emulated and is_value(value)
        }


def headers_for(
    proxy: ProxyConfig, headers: Mapping[str, str], emulated: Mapping[str, str]
) -> dict[str, str]:
    """The headers of a request to `proxy`'s back end: its own, then the client's that it wants.

    What the client's request had goes before what the client emulates, as in Centrifugo. Its own
    names are none of the client's: the configuration is refused otherwise.
    """
    sent = dict(proxy.http.static_headers)
    for names, values in (
        (proxy.emulated_headers, emulated),
        (proxy.http_headers, headers),
    ):
        for name in names:
            if (value := values.get(name.lower())) is not None:
                sent[name.lower()] = value
    return sent


def is_value(value: str) -> bool:
    """Whether `value` may be sent as a header's: no line break, and nothing that cannot be
    encoded.
    """
    # Lone surrogates, too, are not printable.
    return len(value) <= HEADER_CHARS_MAX and value.isprintable()


def _small(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)
