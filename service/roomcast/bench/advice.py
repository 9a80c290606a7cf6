"""What somebody can do about a refusal: the option of the server, or of the command."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from roomcast.wire.codes import Disconnect, Error

__all__ = ["Declined", "Step", "api", "closed", "handshake", "is_final", "refused", "unreachable"]

_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_TOO_MANY: Final = 429
_UNAVAILABLE: Final = 503
# RFC 6455 §7.4.1: what a connection without a close frame is said to be closed with.
_ABNORMAL: Final = 1006


class Step(Enum):
    """What was refused. The values are the names of commands."""

    CONNECT = "connect"
    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"


class Declined(Exception):
    """The server does not want this, and would not want it again. One line, with what to do."""


_UNKNOWN_USER: Final = (
    "take --token, or --secret with the server's client.token.hmac_secret_key, or set "
    "client.allow_anonymous_connect_without_token on the server"
)
_WRONG_SIGNATURE: Final = (
    "a key under client.token of the server must fit --token; --secret must be its "
    "client.token.hmac_secret_key; client.token.audience and client.token.issuer are those of "
    "--config"
)
_LIMIT: Final = (
    "see client.connection_limit of the server, and client.user_connection_limit: with --secret "
    "each client is a user of its own"
)
_NAMESPACE: Final = "--namespace must be one of [[channel.namespaces]] of the server"
_SLOWER: Final = "the server, or its AWS, does not keep up: take a lower --ramp"
_SUBSCRIBE: Final = (
    "set allow_subscribe_for_client for the channel on the server (and "
    "allow_subscribe_for_anonymous for clients without a user), choose its namespace with "
    "--namespace, or let tokens allow it: --secret with --grant"
)
_PUBLISH: Final = (
    "set allow_publish_for_subscriber or allow_publish_for_client for the channel on the server "
    "(and allow_publish_for_anonymous for clients without a user), choose its namespace with "
    "--namespace, let tokens allow it (--secret with --grant), or publish through the server API "
    "(--api)"
)

_REFUSALS: Final[Mapping[tuple[Step, Error], str]] = {
    (Step.CONNECT, Error.UNAUTHORIZED): _UNKNOWN_USER,
    (Step.CONNECT, Error.TOKEN_EXPIRED): "the token of --token expired: take another",
    (Step.SUBSCRIBE, Error.UNKNOWN_CHANNEL): _NAMESPACE,
    (Step.SUBSCRIBE, Error.PERMISSION_DENIED): _SUBSCRIBE,
    (Step.SUBSCRIBE, Error.LIMIT_EXCEEDED): (
        "take fewer --subscriptions, or raise client.channel_limit on the server"
    ),
    (Step.CONNECT, Error.INTERNAL): _SLOWER,
    (Step.SUBSCRIBE, Error.INTERNAL): _SLOWER,
    (Step.PUBLISH, Error.TOO_MANY_REQUESTS): (
        "take a lower --rate or more --channels; one client may do client.publish_rate_limit"
    ),
    (Step.PUBLISH, Error.UNKNOWN_CHANNEL): _NAMESPACE,
    (Step.PUBLISH, Error.PERMISSION_DENIED): _PUBLISH,
    (Step.PUBLISH, Error.LIMIT_EXCEEDED): (
        "take a smaller --size, or raise client.message_size_limit on the server"
    ),
}
_CLOSES: Final[Mapping[Disconnect, str]] = {
    Disconnect.INVALID_TOKEN: _WRONG_SIGNATURE,
    Disconnect.CONNECTION_LIMIT: _LIMIT,
    Disconnect.BAD_REQUEST: "does the server speak the Centrifuge protocol in JSON?",
}
_HANDSHAKES: Final[Mapping[int, str]] = {
    _UNAUTHORIZED: "something in front of the server wants credentials",
    _NOT_FOUND: "nothing is at this path: roomcast's is /connection/websocket",
    _TOO_MANY: "take a lower --ramp, or raise client.handshake_rate_limit on the server",
    _UNAVAILABLE: "it takes no further connections, or is not ready: look at /health/ready",
}
_ADDRESSES: Final = (
    # (a part of what the system says, what to do). The first that fits.
    ("refused", "nobody listens there: is the server running, and is this its port?"),
    ("not known", "this name has no address: is the URL right?"),
    ("resolution", "this name has no address: is the URL right?"),
    ("No address", "this name has no address: is the URL right?"),
    ("WRONG_VERSION", "it does not speak TLS: take ws://, or http://"),
    ("disconnected", "if it speaks TLS, take wss://, or https://"),
    ("CERTIFICATE", "its certificate is not trusted here"),
)


def refused(step: Step, code: int, message: str) -> str:
    """One line for an error reply: what it says, and what to do if that is known."""
    told = f"{step.value}: {message} ({code})"
    return _line(told, _refusal(step, code))


def is_final(step: Step, code: int) -> bool:
    """Whether every client would get this error, each time."""
    return any(
        (at, error.value.code) == (step, code) and not error.value.temporary
        for at, error in _REFUSALS
    )


def closed(code: int, reason: str) -> str:
    """One line for a close of the server."""
    if code in (0, _ABNORMAL):
        return "the connection broke"
    told = f"the server closed the connection: {reason or 'without a reason'} ({code})"
    why = next((each for each in _CLOSES if each.value.code == code), None)
    return _line(told, _CLOSES[why] if why else "")


def handshake(url: str, status: int, origin: str) -> str:
    """One line for an answer that does not open a WebSocket. `origin`: that was sent, "" = none."""
    if status == _FORBIDDEN:
        todo = (
            f"client.allowed_origins of the server does not have {origin}"
            if origin
            else "something in front of the server forbids it; a page of a browser sends an Origin "
            "(--origin)"
        )
    else:
        todo = _HANDSHAKES.get(status, "is it a roomcast server?")
    return _line(f"{url} answers with HTTP {status}", todo)


def api(url: str, status: int) -> str:
    """One line for an answer of the server API that is none of a method."""
    todo = (
        "it wants another key (--key, http_api.key or ROOMCAST_HTTP_API_KEY), or http_api.key is "
        "not set on the server and its API is off"
        if status == _UNAUTHORIZED
        else "is it a roomcast server?"
    )
    return _line(f"{url} answers with HTTP {status}", todo)


def unreachable(url: str, reason: str) -> str:
    """One line for a connection that does not come about."""
    todo = next((todo for part, todo in _ADDRESSES if part in reason), "")
    return _line(f"{url}: {reason}", todo)


def _refusal(step: Step, code: int) -> str:
    found = (
        todo for (at, error), todo in _REFUSALS.items() if (at, error.value.code) == (step, code)
    )
    return next(found, "")


def _line(told: str, todo: str) -> str:
    return f"{told}; {todo}" if todo else told
