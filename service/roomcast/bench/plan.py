"""The plan of a load: how much of what, who is where, and what is too much by default.

Clients, channels and publications are numbers from 0 on. A publisher is the number of a client, or
-1 less the number of an API.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

__all__ = [
    "CEILINGS",
    "DEFAULTS",
    "DELIVERIES_MAX",
    "DELIVERIES_RATE_MAX",
    "LIMITS",
    "SIZE_MIN",
    "SUBSCRIPTIONS_MAX",
    "Plan",
    "payload",
]

# What a load is without options, what options may ask for, and what they may ask for once the
# limits are lifted. The ceilings are more than one process can do.
DEFAULTS: Final = {
    "clients": 100,
    "channels": 10,
    "rate": 20,
    "size": 200,
    "duration": 10,
    "ramp": 50,
}
LIMITS: Final = {
    "clients": 1000,
    "channels": 1000,
    "rate": 500,
    "size": 16 * 1024,
    "duration": 60,
    "ramp": 200,
}
CEILINGS: Final = {
    "clients": 20_000,
    "channels": 20_000,
    "rate": 20_000,
    "size": 256 * 1024,
    "duration": 86_400,
    "ramp": 5000,
}
# Deliveries a second that a plan may come to without the limits being lifted: a quarter of what
# one process reads.
DELIVERIES_RATE_MAX: Final = 5000
# Deliveries of one run, however the limits are. Each takes a byte of memory.
DELIVERIES_MAX: Final = 200_000_000
# The default of `client.channel_limit`.
SUBSCRIPTIONS_MAX: Final = 128
# Room for a publication's numbers.
SIZE_MIN: Final = 64


@dataclass(frozen=True)
class Plan:
    """`urls`: where clients connect. `apis`: where publications go; none = clients publish.

    `subscriptions`: of each client. `publishers`: clients that publish. `rate`: publications a
    second, of all together. `size`: bytes of a publication's JSON. `duration`: s of publishing.
    `ramp`: connects a second. `wait`: s to wait for what is still under way at the end.
    `namespace`: of the channels, "" = none. `run`: a name that no other run has.
    """

    urls: Sequence[str]
    run: str
    clients: int = DEFAULTS["clients"]
    channels: int = DEFAULTS["channels"]
    subscriptions: int = 1
    publishers: int = DEFAULTS["clients"]
    rate: int = DEFAULTS["rate"]
    size: int = DEFAULTS["size"]
    duration: float = DEFAULTS["duration"]
    ramp: int = DEFAULTS["ramp"]
    wait: int = 10
    namespace: str = ""
    apis: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert self.urls, "clients connect somewhere"
        assert 1 <= self.publishers <= self.clients, "publishers are clients"
        assert 1 <= self.subscriptions <= self.channels, "no client is in a channel twice"
        assert self.subscriptions <= SUBSCRIPTIONS_MAX, "a frame and a server hold so many"
        assert self.size >= SIZE_MIN, "there is room for the numbers"

    @property
    def publications(self) -> int:
        return round(self.rate * self.duration)

    @property
    def deliveries_rate(self) -> float:
        """Deliveries a second: each publication goes to the subscribers of one channel."""
        return self.rate * self.clients * self.subscriptions / self.channels

    def excesses(self, *, lifted: bool) -> Iterator[str]:
        """What is more than allowed, one line each. `lifted`: the limits are."""
        bounds = CEILINGS if lifted else LIMITS
        for name, most in bounds.items():
            if getattr(self, name) > most:
                yield f"--{name} {getattr(self, name)} is more than {most}"
        if self.deliveries_rate > DELIVERIES_RATE_MAX and not lifted:
            yield (
                f"{self.rate} publications a second to "
                f"{self.clients * self.subscriptions / self.channels:g} subscribers each are "
                f"{self.deliveries_rate:g} deliveries a second, which is more than "
                f"{DELIVERIES_RATE_MAX}"
            )
        if self.deliveries_rate * self.duration > DELIVERIES_MAX:
            yield (f"the deliveries are more than {DELIVERIES_MAX}: lower --duration or --rate")

    def channel_name(self, channel: int) -> str:
        namespace = f"{self.namespace}:" if self.namespace else ""
        return f"{namespace}bench-{self.run}-{channel}"

    def url_of(self, client: int) -> int:
        """The number of the client's URL. Those of one channel are spread over all URLs."""
        return (client % self.channels + client // self.channels) % len(self.urls)

    @cached_property
    def _addresses(self) -> Sequence[int]:
        """The number of the host and port of each URL, and of each API behind them."""
        hosts = [urlsplit(url).netloc for url in (*self.urls, *self.apis)]
        return [hosts.index(host) for host in hosts]

    @property
    def has_paths(self) -> bool:
        """Whether a publication and its subscriber may have different addresses."""
        return len(set(self._addresses)) > 1

    def address_of(self, publisher: int) -> int:
        """The number of the host and port that a client, or what publishes through an API, uses."""
        place = self.url_of(publisher) if publisher >= 0 else len(self.urls) - 1 - publisher
        return self._addresses[place]

    def channels_of(self, client: int) -> list[int]:
        """The channels that the client subscribes to."""
        return [(client + each) % self.channels for each in range(self.subscriptions)]

    def publisher_of(self, publication: int) -> int:
        """The client that publishes, each in turn; with APIs, -1 less the number of one of them."""
        return -1 - publication % len(self.apis) if self.apis else publication % self.publishers

    def channel_of(self, publication: int, publisher: int) -> int:
        """The channel of a publication: one of the client's own, each in turn; through an API, one
        of all.
        """
        if publisher < 0:
            return publication % self.channels
        own = self.channels_of(publisher)
        return own[publication // self.publishers % len(own)]

    def due_s(self, publication: int) -> float:
        """When it is published, in s from the first one on."""
        return publication / self.rate

    def first_clients(self) -> list[int]:
        """One client for each URL: they try the URLs before the others come."""
        first: dict[int, int] = {}
        for client in range(self.clients):
            first.setdefault(self.url_of(client), client)
            if len(first) == len(self.urls):
                break
        return sorted(first.values())


def payload(plan: Plan, number: int) -> str:
    """The JSON of a channel's publication with that number: `plan.size` bytes, all ASCII."""
    begin = f'{{"bench":"{plan.run}","n":{number},"pad":"'
    text = f'{begin}{"x" * (plan.size - len(begin) - 2)}"}}'
    assert len(text) == plan.size, "SIZE_MIN leaves room"
    return text
