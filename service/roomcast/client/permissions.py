"""What one client may do in a channel, by the channel's options, tokens and hooks.

Any of three things allows an action: an option of the channel, which opens it to clients, to
subscribers or to anonymous clients; a capability in the subscription's token; or a capability in
the connection's token. `client.insecure` allows everything that the channel provides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from roomcast.wire.capabilities import Capability, Grant, granted
from roomcast.wire.channels import ChannelOptions

__all__ = ["Permissions"]

_NOTHING: Final[frozenset[Capability]] = frozenset()


class Permissions:
    """The permissions of one client. Before `connect`, `user` is "" and no permission is checked.

    In the methods, `subscribed` says whether the client is subscribed to the channel, or about to
    be.
    """

    __slots__ = ("_by_token", "_caps", "_insecure", "user")

    def __init__(self, *, insecure: bool) -> None:
        self.user = ""
        self._insecure = insecure
        # From the connection's token and the connect hook: for channels that match a pattern.
        self._caps: tuple[Grant, ...] = ()
        # From a subscription's token or hook: for its channel.
        self._by_token: dict[str, frozenset[Capability]] = {}

    # ---- what is granted

    def grant(self, caps: Iterable[Grant]) -> None:
        """Replace the connection's capabilities with `caps`."""
        self._caps = tuple(caps)

    def grant_in(self, channel: str, allow: frozenset[Capability]) -> None:
        """Allow `allow` in `channel` until `left`."""
        self._by_token[channel] = allow

    def left(self, channel: str) -> None:
        """The subscription to `channel` has ended, and with it the capabilities of its token."""
        self._by_token.pop(channel, None)

    # ---- what is allowed

    def is_open_to_hook(self, channel: str, options: ChannelOptions) -> bool:
        """Whether the subscribe hook decides, and not a token or a list of users."""
        if self._insecure:
            return True
        return not channel.startswith("$") and options.users_of(channel) is None

    def may_subscribe(self, channel: str, options: ChannelOptions) -> bool:
        """Whether the client may subscribe without a token for `channel`."""
        if self._insecure:
            return True
        if channel.startswith("$"):
            return False
        if (users := options.users_of(channel)) is not None:
            # A user on the list needs nothing else.
            open_to_client = self._is_listed(users)
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
        """Whether a subscriber may recover. That is history from a position of its choice."""
        return (
            options.force_recovery
            or options.allow_recovery
            or self.may_read_history(channel, options, subscribed=True)
        )

    def may_be_positioned(self, channel: str, options: ChannelOptions) -> bool:
        """Whether a subscriber may ask for a position, and for order to be kept."""
        return options.allow_positioning or self.may_read_history(channel, options, subscribed=True)

    def _is_listed(self, users: frozenset[str]) -> bool:
        # A list may have an empty place (`room#ann,`), which is nobody's: not that of all who have
        # no user.
        return bool(self.user) and self.user in users

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
        """Whether a capability or one of the options allows the action.

        `client`: any client with a user may. `subscriber`: any subscriber with a user may.
        `anonymous`: with either of these, clients without a user may as well. In a channel for
        certain users, only the listed users count as clients.
        """
        if self._insecure:
            return True
        is_somebody = bool(self.user) or anonymous
        if is_somebody and subscriber and subscribed:
            return True
        users = options.users_of(channel)
        if client and (is_somebody if users is None else self._is_listed(users)):
            return True
        allowed = self._by_token.get(channel, _NOTHING)
        return capability in allowed or capability in granted(self._caps, channel)
