"""Serves the demo chat page, its data about this server, and tokens for it. Development only.

The configuration's secret signs a token for any name, so a caller can become any user. Therefore
only `roomcast dev` has these routes, and only a page of this server that is open on this machine
may call them. `_refuse_strangers` is the one place that decides.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from roomcast.auth.claims import TokenError
from roomcast.auth.ports import Verifier
from roomcast.auth.verifier import sign_connection, sign_subscription, verifier_of
from roomcast.config import ClientConfig, TokenConfig
from roomcast.gateway.body import BODY_S, media_type
from roomcast.gateway.pages import is_on_this_machine, url_parts
from roomcast.wire.capabilities import Capability
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import Json

__all__ = [
    "SUBSCRIPTION_REQUEST_BYTES_MAX",
    "TOKEN_REQUEST_BYTES_MAX",
    "TOKEN_TTL_S",
    "USER_CHARS_MAX",
    "add_demo_routes",
]

# A name of 40 characters needs 480 bytes if each one is a pair of escapes. The rest is room.
TOKEN_REQUEST_BYTES_MAX: Final = 1024
# Our connection token has some 1,000 bytes with the longest name, and a channel has 255.
SUBSCRIPTION_REQUEST_BYTES_MAX: Final = 4096
USER_CHARS_MAX: Final = 40
# Short enough for an open page to show how tokens are refreshed.
TOKEN_TTL_S: Final = 600
# Channels with this prefix need a subscription token (docs/protocol.md).
PRIVATE_PREFIX: Final = "$"
# The page's channel for people who named none.
LOBBY: Final = "lobby"
# The namespace of channels that only show who is typing: not for chatting.
TYPING_NAMESPACE: Final = "typing"
# The token also allows these in the private channel, whatever its namespace allows.
PRIVATE_ALLOW: Final = (Capability.PUBLISH, Capability.HISTORY, Capability.PRESENCE)

_PAGE: Final = Path(__file__).parent / "page"
_CONTENT_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Nothing inline and nothing from other origins, so that a message in a channel can never become
# code. `ws:` because not every browser accepts 'self' for a WebSocket of the same origin.
_CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self' ws:; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# The next server at this address may have another version.
_PAGE_HEADERS: Final = {**_HEADERS, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
_PACKED_HEADERS: Final = {**_PAGE_HEADERS, "Content-Encoding": "gzip"}
_ANSWER_HEADERS: Final = {**_HEADERS, "Cache-Control": "no-store"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _NotAccepted(Exception):
    """A request gets no token: an HTTP status, and words for the person who entered the name."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def add_demo_routes(
    app: web.Application,
    *,
    node: str,
    peers: Sequence[str],
    client: ClientConfig,
    channels: ChannelRules,
) -> None:
    """Serves the page at `/`, and its files and calls under `/demo/`.

    `peers` are the base URLs of all instances, including this one. `client`'s secret signs the
    tokens. Without one nobody can sign in.
    """
    demo = _Demo(node, tuple(peers), client, channels, verifier_of(client, insecure=True))
    for path in sorted(_PAGE.iterdir()):
        # Read once here: the files are small, and a request must not wait for a disk.
        handler = _file_handler(path.read_bytes(), _CONTENT_TYPES[path.suffix])
        app.router.add_get("/" if path.name == "index.html" else f"/demo/{path.name}", handler)
    app.router.add_get("/demo/info", demo.info)
    app.router.add_post("/demo/token", _answering(demo.token))
    app.router.add_post("/demo/subscription-token", _answering(demo.subscription_token))


def _file_handler(body: bytes, content_type: str) -> Handler:
    charset = None if content_type == "image/svg+xml" else "utf-8"
    packed = gzip.compress(body, mtime=0)

    async def serve_file(request: web.Request) -> web.Response:
        wants_packed = "gzip" in request.headers.get("Accept-Encoding", "")
        return web.Response(
            body=packed if wants_packed else body,
            content_type=content_type,
            charset=charset,
            headers=_PACKED_HEADERS if wants_packed else _PAGE_HEADERS,
        )

    return serve_file


def _answering(call: Callable[[web.Request], Awaitable[Json]]) -> Handler:
    """Answers with `call`'s result as JSON, or with its refusal in words."""

    async def handle(request: web.Request) -> web.Response:
        try:
            _refuse_strangers(request)
            return _answer(await call(request))
        except _NotAccepted as refusal:
            error = {"code": refusal.status, "message": refusal.message}
            return _answer({"error": error}, refusal.status)

    return handle


@dataclass(frozen=True, slots=True)
class _Demo:
    node: str
    peers: tuple[str, ...]
    client: ClientConfig
    channels: ChannelRules
    verifier: Verifier

    async def info(self, _request: web.Request) -> web.Response:
        """GET /demo/info: this instance, the other instances, and the features of this server."""
        return _answer({
            "node": self.node,
            "instances": [{"url": url} for url in self.peers],
            "insecure": self.client.insecure,
            "signs": bool(self.client.token.hmac_secret_key),
            "channel": _first_channel(self.client, self.channels),
        })  # fmt: skip

    async def token(self, request: web.Request) -> Json:
        """POST /demo/token {"user": "Ann"}: a connection token for that name.

        `expires_at` of the answers is in s since 1970. Raises _NotAccepted.
        """
        user = _user(await _body(request, TOKEN_REQUEST_BYTES_MAX))
        now_s = int(time.time())
        token = self.client.token
        signed = sign_connection(
            user,
            _secret(token, "client.token"),
            TOKEN_TTL_S,
            {"name": user},
            audience=token.audience,
            issuer=token.issuer,
            user_id_claim=token.user_id_claim,
            now_s=now_s,
        )
        return {"token": signed, "user": user, "expires_at": now_s + TOKEN_TTL_S}

    async def subscription_token(self, request: web.Request) -> Json:
        """POST /demo/subscription-token {"token": "…", "channel": "$room"}: a token for the user of
        the connection token.

        Raises _NotAccepted.
        """
        body = await _body(request, SUBSCRIPTION_REQUEST_BYTES_MAX)
        channel = _private_channel(body)
        now_s = int(time.time())
        user = await self._signed_in(body, now_s)
        token = self.client.token_of_subscriptions
        table = "client.token" if token is self.client.token else "client.subscription_token"
        signed = sign_subscription(
            user,
            channel,
            _secret(token, table),
            TOKEN_TTL_S,
            audience=token.audience,
            issuer=token.issuer,
            user_id_claim=token.user_id_claim,
            now_s=now_s,
            claims={"allow": [capability.value for capability in PRIVATE_ALLOW]},
        )
        return {"token": signed, "channel": channel, "expires_at": now_s + TOKEN_TTL_S}

    async def _signed_in(self, body: Json, now_s: int) -> str:
        """The user of the connection token in `body`. A bare name would prove nothing."""
        token = body.get("token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not token:
            raise _NotAccepted(
                401, "A private room needs to know who you are: sign in with a name first."
            )
        try:
            claims = await self.verifier.connection(token, now_s)
        except TokenError as error:
            raise _NotAccepted(401, "Your token is not good any more: sign in again.") from error
        if not claims.user:
            raise _NotAccepted(401, "Your token names nobody: sign in with a name.")
        return claims.user


def _first_channel(client: ClientConfig, channels: ChannelRules) -> str:
    """A channel in which every signed-in user can chat, preferably with history."""

    def suits(options: ChannelOptions) -> bool:
        may_publish = options.allow_publish_for_client or options.allow_publish_for_subscriber
        return options.allow_subscribe_for_client and may_publish

    if client.insecure or suits(channels.without_namespace):
        return LOBBY
    rooms = [each for each in channels.namespaces.items() if each[0] != TYPING_NAMESPACE]
    found = [(name, options) for name, options in rooms if suits(options)]
    found.sort(key=lambda each: not each[1].has_history)
    return f"{found[0][0]}:{LOBBY}" if found else f"{PRIVATE_PREFIX}{LOBBY}"


def _refuse_strangers(request: web.Request) -> None:
    """Raises _NotAccepted unless a page of this very server, open on this machine, calls.

    The browser on this machine also runs other origins' pages (`Origin`).
    """
    headers = request.headers
    if not is_on_this_machine(request):
        raise _NotAccepted(
            403,
            "Tokens are signed only for a page that is open on the server's own machine. Open it "
            "there as http://127.0.0.1 or http://localhost, or join as a guest.",
        )
    origin, host = headers.get("Origin"), headers.get("Host", "")
    same_origin = origin is None or url_parts(origin).netloc.lower() == host.lower()
    if not same_origin or headers.get("Sec-Fetch-Site", "same-origin") not in (
        "same-origin",
        "none",
    ):
        raise _NotAccepted(403, "Tokens are signed only for this server's own page.")


async def _body(request: web.Request, bytes_max: int) -> Json:
    """The request's JSON. Raises _NotAccepted."""
    # A page of another origin cannot send this type without a preflight request, which is always
    # refused.
    if media_type(request) != "application/json":
        raise _NotAccepted(415, "Content-Type must be application/json.")
    try:
        async with asyncio.timeout(BODY_S):
            await request.content.readexactly(bytes_max + 1)
    except TimeoutError:
        raise _NotAccepted(408, f"The request was not complete within {BODY_S:g} s.") from None
    except asyncio.IncompleteReadError as whole:
        body = whole.partial
    else:
        raise _NotAccepted(413, f"More than {bytes_max} bytes.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _NotAccepted(400, "Not JSON.") from error


def _private_channel(body: Json) -> str:
    channel = body.get("channel") if isinstance(body, dict) else None
    if (
        not isinstance(channel, str)
        or not is_valid_name(channel)
        or len(channel) <= len(PRIVATE_PREFIX)
    ):
        raise _NotAccepted(
            400, "Please name a channel of up to 255 plain letters, digits and signs."
        )
    if not channel.startswith(PRIVATE_PREFIX):
        # Options, or the list of users in the name, control access to such a channel. A token would
        # override both.
        raise _NotAccepted(
            400, f"Only channels that begin with {PRIVATE_PREFIX} need a token of their own."
        )
    return channel


def _user(request: Json) -> str:
    """The name in the request, trimmed. Raises _NotAccepted."""
    name = request.get("user") if isinstance(request, dict) else None
    if not isinstance(name, str):
        raise _NotAccepted(400, "Please enter a name.")
    # NFC, so that a name is the same however it was typed.
    user = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(user) <= USER_CHARS_MAX:
        raise _NotAccepted(400, f"A name has 1 to {USER_CHARS_MAX} characters.")
    # Also refuses characters that are invisible or change the direction of writing: names must not
    # imitate others.
    if not user.isprintable():
        raise _NotAccepted(400, "A name has only characters that can be seen.")
    return user


def _answer(body: Json, status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers=_ANSWER_HEADERS)


def _secret(token: TokenConfig, table: str) -> str:
    """What tokens of a table are signed with. Raises _NotAccepted."""
    if not token.hmac_secret_key:
        raise _NotAccepted(
            409,
            f"This server cannot sign tokens: its configuration has no {table}.hmac_secret_key. "
            "Set one, or join as a guest.",
        )
    return token.hmac_secret_key
