"""`roomcast tail`: prints a channel's publications as they come, over a WebSocket like an SDK."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from roomcast import __version__
from roomcast.backoff import FROM_NOTHING, Backoff
from roomcast.cli.arguments import COUNT_MAX, Subparsers, add_command, add_server, text, whole
from roomcast.cli.history import cells
from roomcast.cli.server_api import decoded, understood
from roomcast.cli.terminal import Failed
from roomcast.observe.redaction import json_printable, printable, without_passwords

if TYPE_CHECKING:
    import aiohttp

__all__ = ["ANSWER_S", "ATTEMPTS_MAX", "add"]

_EXAMPLES: Final = """\
examples:
  roomcast tail news
  roomcast tail news --count 1 --json
  roomcast tail news --token "$(roomcast token --user ann)" --url https://chat.example.com

Shows what is published from now on, one line each: offset, time, user, data; with --json as an
object. When the server goes away it connects again. Where it may recover (force_recovery,
allow_recovery, or the right to read the history) nothing is left out then; else a line on stderr
says so. Ctrl-C ends it.
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
# From this code on an unsubscribe push asks for a new subscribe. A lower code is final.
_AGAIN: Final = 2500
# Close codes after which SDKs do not reconnect.
_TERMINAL: Final = ((3500, 3999), (4500, 4999))

_CONNECT, _SUBSCRIBE = 1, 2


class _Lost(Exception):
    """The connection is gone, and a new one may work."""


class _Unprinted(Exception):
    """What came cannot be printed: whoever read it is gone, as with `| head`. No connection helps.

    `reason`: the error of standard output.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__()
        self.reason = reason


@dataclass(slots=True)
class _Tail:
    """The watched channel, and the last position seen. `left`: lines still to print, None =
    no end.
    """

    url: str
    channel: str
    token: str
    channel_token: str
    as_json: bool
    left: int | None
    position: dict[str, Any] = field(default_factory=dict)
    # Whether it was subscribed before.
    again: bool = False
    # Attempts since the last answered one.
    attempts: int = 0


def add(commands: Subparsers) -> None:
    """Adds `roomcast tail`."""
    parser = add_command(
        commands,
        "tail",
        tail,
        "show what is published in a channel as it comes, over a WebSocket",
        _EXAMPLES,
    )
    add_server(parser)
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
        help="subscription token, if it takes one",
    )
    parser.add_argument(
        "--count", type=whole(1, COUNT_MAX), metavar="N", help="end after so many publications"
    )


def tail(arguments: argparse.Namespace) -> int:
    """Prints publications until there were enough, or it is interrupted. Raises Failed."""
    watched = _Tail(
        arguments.url,
        arguments.channel,
        arguments.token,
        arguments.channel_token,
        arguments.json,
        arguments.count,
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
    wanted = {"positioned": True, "recoverable": True, "token": watched.channel_token}
    if watched.position:
        wanted |= {"recover": True, **watched.position}
    lines = [
        {"id": _CONNECT, "connect": connect},
        {"id": _SUBSCRIBE, "subscribe": {"channel": watched.channel, **wanted}},
    ]
    await socket.send_str("\n".join(map(json.dumps, lines)))
    answered = False
    while watched.left != 0:
        async with asyncio.timeout(_SILENCE_S if answered else ANSWER_S):
            message = await socket.receive()
        if not isinstance(message.data, str):
            raise _closed(message, socket.close_code)
        for line in message.data.strip().split("\n"):
            with understood(watched.url):
                reply = decoded(line)
                if "error" in reply:
                    raise _error(reply)
                if "subscribe" in reply:
                    answered, watched.attempts = True, 0
                    _subscribed(watched, reply["subscribe"])
                else:
                    _pushed(watched, reply.get("push", {}))
            if not reply:
                await socket.send_str("{}")


def _subscribed(watched: _Tail, result: Mapping[str, Any]) -> None:
    if result.get("was_recovering") and not result.get("recovered"):
        print("roomcast: some publications are left out here", file=sys.stderr, flush=True)
    elif watched.again and "epoch" not in result:
        print(
            "roomcast: what was published meanwhile is left out: nothing is recovered here",
            file=sys.stderr,
            flush=True,
        )
    watched.again = True
    if "epoch" in result:
        watched.position = {"epoch": result["epoch"], "offset": result.get("offset", 0)}
    for publication in result.get("publications", ()):
        _show(watched, publication)


def _pushed(watched: _Tail, push: Mapping[str, Any]) -> None:
    if "unsubscribe" in push:
        why = f"{push['unsubscribe']['reason']} ({push['unsubscribe']['code']})"
        raise (_Lost if push["unsubscribe"]["code"] >= _AGAIN else Failed)(f"unsubscribed: {why}")
    if "pub" in push and push.get("channel") == watched.channel:
        _show(watched, push["pub"])


def _show(watched: _Tail, publication: Mapping[str, Any]) -> None:
    if watched.left == 0:
        return
    if watched.position and "offset" in publication:
        watched.position["offset"] = publication["offset"]
    if watched.as_json:
        text = json_printable(json.dumps(publication, ensure_ascii=False))
    else:
        text = "  ".join(cell or "-" for cell in cells(publication))
    try:
        print(text, flush=True)
    except OSError as error:
        raise _Unprinted(error) from error
    if watched.left is not None:
        watched.left -= 1


def _error(reply: Mapping[str, Any]) -> Exception:
    error, what = reply["error"], "connect" if reply.get("id") == _CONNECT else "subscribe"
    why = f"{what}: {error['message']} ({error['code']})"
    return _Lost(why) if error.get("temporary") else Failed(why)


def _closed(message: aiohttp.WSMessage, close_code: int | None) -> Exception:
    code = message.data if isinstance(message.data, int) else close_code or 0
    is_final = any(first <= code <= last for first, last in _TERMINAL)
    why = f"{message.extra} ({code})" if message.extra else str(code)
    return (Failed if is_final else _Lost)(f"the server closed the connection: {why}")
