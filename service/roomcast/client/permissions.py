"""Who may do what: one client in one channel, by the channel's options, tokens and hooks.

An action is allowed by any of three: an option of the channel that opens it to clients, to
subscribers or to those without a user; a capability of the subscription's own token; or one of the
connection's. `client.insecure` allows everything that the channel provides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from roomcast.wire.capabilities import Capability, Grant, granted
from roomcast.wire.channels import ChannelOptions

__all__ = ["Permissions"]

_NOTHING: Final[frozenset[Capability]] = frozenset()


class Permissions:
    """Those of one client. Before `connect` it has no `user` (""), and nothing is asked.

    `subscribed` of the methods: whether the client is subscribed to the channel, or about to be.
    """

    __slots__ = ("_by_token", "_caps", "_insecure", "user")

    def __init__(self, *, insecure: bool) -> None:
        self.user = ""
        self._insecure = insecure
        # By the connection's token and the connect hook, for channels by pattern.
        self._caps: tuple[Grant, ...] = ()
        # By the token of a subscription, or its hook, for its channel.
        self._by_token: dict[str, frozenset[Capability]] = {}

    # ---- what is granted

    def grant(self, caps: Iterable[Grant]) -> None:
        """`caps` holds for the connection from now on, instead of what did."""
        self._caps = tuple(caps)

    def grant_in(self, channel: str, allow: frozenset[Capability]) -> None:
        """`allow` holds in `channel` until `left`."""
        self._by_token[channel] = allow

    def left(self, channel: str) -> None:
        """The subscription to `channel` has ended, and what its token granted with it."""
        self._by_token.pop(channel, None)

    # ---- what is allowed

    def is_open_to_hook(self, channel: str, options: ChannelOptions) -> bool:
        """Whether the subscribe hook is called: not where a token, or a list of users, decides."""
        if self._insecure:
            return True
        return not channel.startswith("$") and options.users_of(channel) is None

    def may_subscribe(self, channel: str, options: ChannelOptions) -> bool:
        """Without a token for `channel`."""
        if self._insecure:
            return True
        if channel.startswith("$"):
            return False
        if (users := options.users_of(channel)) is not None:
            # To be in the list is enough.
            open_to_client = bool(self.user) and self.user in users
        else:
            open_to_client = options.allow_subscribe_for_client and (
                bool(self.user) or options.allow_subscribe_for_anonymous
            )
        return open_to_client or Capability.SUBSCRIBE in granted(self._caps, channel)

    def may_publish(self, channel: str, options: ChannelOptions, *, subscribed: bool) -> bool:
        return self._may(
            channel,
            options,
            Capability.PUBLISH,
            subscribed=subscribed,
            client=options.allow_publish_for_client,
            subscriber=options.allow_publish_for_subscriber,
            anonymous=options.allow_publish_for_anonymous,
        )

    def may_read_history(self, channel: str, options: ChannelOptions, *, subscribed: bool) -> bool:
        return self._may(
            channel,
            options,
            Capability.HISTORY,
            subscribed=subscribed,
            client=options.allow_history_for_client,
            subscriber=options.allow_history_for_subscriber,
            anonymous=options.allow_history_for_anonymous,
        )

    def may_see_presence(self, channel: str, options: ChannelOptions, *, subscribed: bool) -> bool:
        return self._may(
            channel,
            options,
            Capability.PRESENCE,
            subscribed=subscribed,
            client=options.allow_presence_for_client,
            subscriber=options.allow_presence_for_subscriber,
            anonymous=options.allow_presence_for_anonymous,
        )

    def may_recover(self, channel: str, options: ChannelOptions) -> bool:
        """Whether a subscriber gets what it missed: history, from a place that it chooses."""
        return (
            options.force_recovery
            or options.allow_recovery
            or self.may_read_history(channel, options, subscribed=True)
        )

    def may_be_positioned(self, channel: str, options: ChannelOptions) -> bool:
        """Whether a subscriber gets its position, and order kept, by its own wish."""
        return options.allow_positioning or self.may_read_history(channel, options, subscribed=True)

    def _may(
        self,
        channel: str,
        options: ChannelOptions,
        capability: Capability,
        *,
        subscribed: bool,
        client: bool,
        subscriber: bool,
        anonymous: bool,
    ) -> bool:
        """`client`: whoever has a user may; `subscriber`: whoever has one and is subscribed.

        `anonymous`: with either, those without a user as well. In a channel for certain users, a
        client is who is listed.
        """
        if self._insecure:
            return True
        is_somebody = bool(self.user) or anonymous
        if is_somebody and subscriber and subscribed:
            return True
        users = options.users_of(channel)
        if is_somebody and client and (users is None or self.user in users):
            return True
        allowed = self._by_token.get(channel, _NOTHING)
        return capability in allowed or capability in granted(self._caps, channel)
