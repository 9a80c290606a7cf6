"""`roomcast tail`: prints publications of channels as they come, over a WebSocket like an SDK."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from roomcast import __version__
from roomcast.backoff import FROM_NOTHING, Backoff
from roomcast.cli.arguments import (
    COUNT_MAX,
    Subparsers,
    UsageError,
    add_address,
    add_command,
    text,
    whole,
)
from roomcast.cli.filters import Filter, field_value, pattern, tag
from roomcast.cli.history import cells
from roomcast.cli.moments import Since, since
from roomcast.cli.server_api import decoded, understood
from roomcast.cli.terminal import Failed
from roomcast.observe.redaction import json_printable, printable, without_passwords

if TYPE_CHECKING:
    import aiohttp

__all__ = ["ANSWER_S", "ATTEMPTS_MAX", "BEHIND_MAX", "CHANNELS_MAX", "PAGE", "add"]

_EXAMPLES: Final = """\
examples:
  roomcast tail news
  roomcast tail news --count 1 --json
  roomcast tail news chat:lobby --since 10m --grep 'error|failed'
  roomcast tail orders --tag shop=7 --where status=paid --user ann
  roomcast tail news --token "$(roomcast token --user ann)" --url https://chat.example.com
  roomcast tail sensors:3 --binary

Shows what is published from now on, one line each: offset, time, user, data; with --json as an
object. Of several channels each line begins with the channel's name (in JSON: channel).
With --since it begins with what is in the history since then: behind an offset, of the last 90s,
5m, 2h, 1d, or from a time on such as 2026-11-29T10:00Z. That needs the right to read the history.
What is shown passes all of --grep, --tag, --where and --user.
Binary channels (publication_data_format) need --binary: their data is shown as base64.
When the server goes away it connects again. Where it may recover (force_recovery, allow_recovery,
or the right to read the history) nothing is left out then; else a line on stderr says so. Ctrl-C
ends it.
"""

# The time for an answer to a command. The longest silence of a server, whose pings come every 25 s.
ANSWER_S: Final = 10.0
_SILENCE_S: Final = 60.0
# Attempts to connect in a row. Their pauses are random, because other clients reconnect as well.
ATTEMPTS_MAX: Final = 10
_BACKOFF: Final = Backoff(1.0, 10.0, FROM_NOTHING)
# The time for a server to answer a close.
_CLOSE_S: Final = 1.0
# A publication with its surroundings.
_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
# The server's own default for one connection, `client.channel_limit`.
CHANNELS_MAX: Final = 128
# Publications of one reply to `history`, and those that --since shows of a channel at most.
PAGE: Final = 100
BEHIND_MAX: Final = 10_000
# From this code on an unsubscribe push asks for a new subscribe. A lower code is final.
_AGAIN: Final = 2500
# Close codes after which SDKs do not reconnect.
_TERMINAL: Final = ((3500, 3999), (4500, 4999))

# Ids of commands: the first subscribe has the one behind `connect`.
_CONNECT: Final = 1
_SUBSCRIBE: Final = 2
_HISTORY: Final = 1000
assert _SUBSCRIBE + CHANNELS_MAX < _HISTORY


class _Lost(Exception):
    """The connection is gone, and a new one may work."""


class _Unprinted(Exception):
    """What came cannot be printed: whoever read it is gone, as with `| head`. No connection helps.

    `reason`: the error of standard output.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__()
        self.reason = reason


class _Json:
    """The encoding of the protocol that most channels have."""

    protocols: Sequence[str] = ()
    frames: type[str | bytes] = str

    async def say(
        self, socket: aiohttp.ClientWebSocketResponse, commands: Sequence[Mapping[str, Any]]
    ) -> None:
        await socket.send_str("\n".join(map(json.dumps, commands)))

    def pieces(self, frame: Any) -> Sequence[Any]:
        """One for each reply. Raises ValueError."""
        pieces: list[str] = frame.strip().split("\n")
        return pieces

    def reply(self, piece: Any) -> Any:
        """Raises ValueError."""
        return decoded(piece)


class _Protobuf:
    """The one that binary channels need."""

    protocols: Sequence[str] = ("centrifuge-protobuf",)
    frames: type[str | bytes] = bytes

    async def say(
        self, socket: aiohttp.ClientWebSocketResponse, commands: Sequence[Mapping[str, Any]]
    ) -> None:
        from roomcast.wire.protobuf_client import encode_commands

        await socket.send_bytes(encode_commands(commands))

    def pieces(self, frame: Any) -> Sequence[Any]:
        """One for each reply. Raises ValueError."""
        from roomcast.wire.protobuf_client import decode_replies

        return list(decode_replies(frame))

    def reply(self, piece: Any) -> Any:
        """It is decoded already."""
        return piece


_Speech = _Json | _Protobuf


@dataclass(slots=True)
class _Channel:
    """A watched channel, and the last position seen."""

    name: str
    # From when on it is still to be shown; None = from now on.
    since: Since | None
    position: dict[str, Any] = field(default_factory=dict)
    # Whether it was subscribed before.
    again: bool = False
    # What was found of the time before, the newest first, and what came while it was looked for;
    # None = nothing is looked for.
    behind: list[dict[str, Any]] | None = None
    held: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Tail:
    """What is watched. `left`: lines still to print, None = no end."""

    url: str
    channels: Mapping[str, _Channel]
    token: str
    channel_token: str
    as_json: bool
    left: int | None
    speech: _Speech
    filter: Filter
    # Attempts since the last answered one.
    attempts: int = 0

    @property
    def names(self) -> Sequence[str]:
        """In the order of their subscribes."""
        return list(self.channels)


def add(commands: Subparsers) -> None:
    """Adds `roomcast tail`."""
    parser = add_command(
        commands,
        "tail",
        tail,
        "show what is published in channels as it comes, over a WebSocket",
        _EXAMPLES,
    )
    parser.add_argument("channels", type=text, nargs="+", metavar="CHANNEL")
    add_address(parser)
    parser.add_argument(
        "--token",
        type=text,
        default="",
        help="connection token (default: none; roomcast token makes one)",
    )
    parser.add_argument(
        "--channel-token",
        type=text,
        default="",
        metavar="TOKEN",
        help="subscription token, if it takes one; of one channel",
    )
    parser.add_argument(
        "--since", type=since, metavar="WHEN", help="begin with the history since then: 41, 5m, 2h"
    )
    wanted = parser.add_argument_group("only publications")
    wanted.add_argument(
        "--grep",
        type=pattern,
        action="append",
        default=[],
        metavar="REGEX",
        help="whose data, as JSON text, has this (Python's regular expressions)",
    )
    wanted.add_argument(
        "--tag", type=tag, action="append", default=[], metavar="K=V", help="that have this tag"
    )
    wanted.add_argument(
        "--where",
        type=field_value,
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="whose data has this value there, such as order.status=paid or items.0.id=7",
    )
    wanted.add_argument("--user", type=text, help="of this user")
    parser.add_argument(
        "--binary",
        action="store_true",
        help="speak Protobuf, which binary channels need, and show data as base64",
    )
    parser.add_argument(
        "--count", type=whole(1, COUNT_MAX), metavar="N", help="end after so many publications"
    )


def tail(arguments: argparse.Namespace) -> int:
    """Prints publications until there were enough, or it is interrupted. Raises Failed and
    UsageError.
    """
    names = list(dict.fromkeys(arguments.channels))
    if len(names) > CHANNELS_MAX:
        raise UsageError(f"no more than {CHANNELS_MAX} channels at once")
    if len(names) > 1:
        if arguments.channel_token:
            raise UsageError("--channel-token is for one channel")
        if arguments.since is not None and arguments.since.offset is not None:
            raise UsageError("an offset is of one channel: give --since a time, such as 5m")
    watched = _Tail(
        arguments.url,
        {name: _Channel(name, arguments.since) for name in names},
        arguments.token,
        arguments.channel_token,
        arguments.json,
        arguments.count,
        _Protobuf() if arguments.binary else _Json(),
        Filter(tuple(arguments.grep), tuple(arguments.tag), tuple(arguments.where), arguments.user),
    )
    try:
        asyncio.run(_watch(watched))
    except KeyboardInterrupt:
        # The ordinary end.
        return 0
    except _Unprinted as error:
        raise error.reason from error
    return 0


async def _watch(watched: _Tail) -> None:
    import aiohttp

    from roomcast.bench.session import Redirected, direct

    address = f"{watched.url.rstrip('/').replace('http', 'ws', 1)}/connection/websocket"
    async with direct() as session:
        while watched.left != 0:
            try:
                async with asyncio.timeout(ANSWER_S):
                    socket = await session.ws_connect(
                        address,
                        protocols=watched.speech.protocols,
                        max_msg_size=_MESSAGE_BYTES_MAX,
                        timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                    )
                try:
                    await _follow(watched, socket)
                finally:
                    await _end(socket)
            except Redirected as error:
                raise Failed(f"{address}: {error}") from error
            except (aiohttp.ClientError, OSError, TimeoutError, _Lost) as error:
                watched.attempts += 1
                why = str(error) or f"no answer within {ANSWER_S:.0f} s"
                if watched.attempts >= ATTEMPTS_MAX:
                    raise Failed(f"{address}: {why}") from error
                told = printable(without_passwords(why))
                print(f"roomcast: {told}; connecting again", file=sys.stderr, flush=True)
                await _pause(watched.attempts)


async def _end(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Close the connection, also to a server that goes on and on and answers no close."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await socket.close()


async def _pause(attempts: int) -> None:
    await asyncio.sleep(_BACKOFF.pause_s(attempts, random.random()))


async def _follow(watched: _Tail, socket: aiohttp.ClientWebSocketResponse) -> None:
    """Connects, subscribes, and prints publications until there were enough. Raises Failed and
    _Lost.
    """
    connect = {"token": watched.token, "name": "roomcast tail", "version": __version__}
    lines = [
        {"id": _CONNECT, "connect": connect},
        *(
            {"id": _SUBSCRIBE + index, "subscribe": _wanted(watched, channel)}
            for index, channel in enumerate(watched.channels.values())
        ),
    ]
    # A frame has room for four commands.
    speech = watched.speech
    await speech.say(socket, lines[:2])
    for line in lines[2:]:
        await speech.say(socket, [line])
    answered = False
    while watched.left != 0:
        async with asyncio.timeout(_SILENCE_S if answered else ANSWER_S):
            message = await socket.receive()
        if not isinstance(message.data, speech.frames):
            raise _closed(message, socket.close_code)
        with understood(watched.url):
            pieces = speech.pieces(message.data)
        for piece in pieces:
            with understood(watched.url):
                reply = speech.reply(piece)
                if "error" in reply:
                    raise _error(watched, reply)
                asked = None
                if "subscribe" in reply:
                    answered, watched.attempts = True, 0
                    channel = watched.channels[watched.names[reply["id"] - _SUBSCRIBE]]
                    asked = _subscribed(watched, channel, reply["subscribe"])
                elif "history" in reply:
                    channel = watched.channels[watched.names[reply["id"] - _HISTORY]]
                    asked = _page(watched, channel, reply["history"])
                else:
                    _pushed(watched, reply.get("push", {}))
            if asked is not None:
                await speech.say(socket, [asked])
            if not reply:
                await speech.say(socket, [{}])


def _wanted(watched: _Tail, channel: _Channel) -> dict[str, Any]:
    """The subscribe for `channel`: from its last position on, if there is one."""
    # What was looked for when the connection was lost is looked for again.
    channel.behind, channel.held = None, []
    wanted = {
        "channel": channel.name,
        "positioned": True,
        "recoverable": True,
        "token": watched.channel_token,
    }
    if channel.position and channel.since is None:
        wanted |= {"recover": True, **channel.position}
    return wanted


def _subscribed(
    watched: _Tail, channel: _Channel, result: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """What is to be asked next."""
    if result.get("was_recovering") and not result.get("recovered"):
        print("roomcast: some publications are left out here", file=sys.stderr, flush=True)
    elif channel.again and "epoch" not in result:
        print(
            "roomcast: what was published meanwhile is left out: nothing is recovered here",
            file=sys.stderr,
            flush=True,
        )
    channel.again = True
    if "epoch" in result:
        channel.position = {"epoch": result["epoch"], "offset": result.get("offset", 0)}
    for publication in result.get("publications", ()):
        _show(watched, channel, publication)
    if channel.since is None:
        return None
    channel.behind = []
    return _history(watched, channel, None)


def _history(watched: _Tail, channel: _Channel, before: int | None) -> Mapping[str, Any]:
    """Asks for a page of what is in the history before that offset; None = before now."""
    wanted: dict[str, Any] = {"channel": channel.name, "limit": PAGE, "reverse": True}
    if before is not None:
        wanted["since"] = {"offset": before, "epoch": channel.position.get("epoch", "")}
    return {"id": _HISTORY + watched.names.index(channel.name), "history": wanted}


def _page(watched: _Tail, channel: _Channel, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Takes a page, the newest first. Returns what is to be asked next; else all of it is shown."""
    if channel.behind is None or channel.since is None:
        return None
    found = result.get("publications", ())
    # What is newer than the subscription comes by that.
    top = channel.position.get("offset") if channel.position else None
    older = [each for each in found if top is None or each["offset"] <= top]
    wanted = [each for each in older if _is_since(channel.since, each)]
    channel.behind += wanted
    lowest = found[-1]["offset"] if found else 0
    if len(wanted) == len(older) and lowest > 1 and len(channel.behind) < BEHIND_MAX:
        return _history(watched, channel, lowest)
    behind, held = channel.behind, channel.held
    channel.since, channel.behind, channel.held = None, None, []
    if len(behind) >= BEHIND_MAX:
        print(
            f"roomcast: only the last {len(behind)} of {printable(channel.name)} are shown",
            file=sys.stderr,
            flush=True,
        )
    for publication in (*reversed(behind), *held):
        _show(watched, channel, publication)
    return None


def _is_since(since: Since, publication: Mapping[str, Any]) -> bool:
    if since.offset is not None:
        return bool(publication["offset"] > since.offset)
    return bool(publication.get("time", 0) >= since.time_ms(int(_now_s() * 1000)))


def _now_s() -> float:
    return time.time()


def _pushed(watched: _Tail, push: Mapping[str, Any]) -> None:
    channel = watched.channels.get(push.get("channel", ""))
    if "unsubscribe" in push:
        why = f"{push['unsubscribe']['reason']} ({push['unsubscribe']['code']})"
        raise (_Lost if push["unsubscribe"]["code"] >= _AGAIN else Failed)(f"unsubscribed: {why}")
    if "pub" not in push or channel is None:
        return
    if channel.behind is None:
        _show(watched, channel, push["pub"])
    elif len(channel.held) < BEHIND_MAX:
        channel.held.append(push["pub"])
    else:
        raise _Lost("too much is published while the history is read")


def _show(watched: _Tail, channel: _Channel, publication: Mapping[str, Any]) -> None:
    if watched.left == 0:
        return
    if channel.position and "offset" in publication:
        channel.position["offset"] = max(channel.position["offset"], publication["offset"])
    if not watched.filter.passes(publication):
        return
    several = len(watched.channels) > 1
    if watched.as_json:
        told = {"channel": channel.name, **publication} if several else publication
        text = json_printable(json.dumps(told, ensure_ascii=False))
    else:
        shown = [printable(channel.name)] if several else []
        text = "  ".join(cell or "-" for cell in (*shown, *cells(publication)))
    try:
        print(text, flush=True)
    except OSError as error:
        raise _Unprinted(error) from error
    if watched.left is not None:
        watched.left -= 1


def _error(watched: _Tail, reply: Mapping[str, Any]) -> Exception:
    error, command_id = reply["error"], reply.get("id", 0)
    first = _HISTORY if command_id >= _HISTORY else _SUBSCRIBE
    what = "connect"
    if command_id != _CONNECT:
        what = "history" if first == _HISTORY else "subscribe"
        names = watched.names
        if len(names) > 1 and command_id - first < len(names):
            what += f" {names[command_id - first]}"
    why = f"{what}: {error['message']} ({error['code']})"
    return _Lost(why) if error.get("temporary") else Failed(why)


def _closed(message: aiohttp.WSMessage, close_code: int | None) -> Exception:
    code = message.data if isinstance(message.data, int) else close_code or 0
    is_final = any(first <= code <= last for first, last in _TERMINAL)
    why = f"{message.extra} ({code})" if message.extra else str(code)
    return (Failed if is_final else _Lost)(f"the server closed the connection: {why}")
