"""Serves the operations page under /admin: its files, the login, and its WebSocket.

    GET  /admin              the page, or the form to log in
    GET  /admin/<file>       the page's files; without a session only those of the form
    POST /admin/login        {"password": "…"}: sets the cookie
    POST /admin/logout       takes it back
    POST /admin/ticket       a ticket for the WebSocket, which scripts can show and a cookie cannot
    GET  /admin/connection   the Centrifuge protocol, for who shows a ticket in `connect`

A cookie is sent by this site's pages alone (SameSite=Strict). Whatever changes something, and the
WebSocket, also needs an Origin that is this host, and a body is JSON. So no page of another origin
acts in somebody's name, also none of another port of this machine.

The connections of the page are those of a node of their own, over the same log, channels and
presence: they count as no clients, are in nobody's presence, and find a place on a full node. What
they may do is decided by the hooks below.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Final

import orjson
import structlog
from aiohttp import web

from roomcast.admin.logins import Logins
from roomcast.admin.methods import CALL_S, Methods
from roomcast.admin.passwords import PASSWORD_BYTES_MAX, PasswordHash
from roomcast.admin.reaping import DryRun, Reaping
from roomcast.admin.sessions import Session, Signer
from roomcast.client.departures import Departures
from roomcast.client.services import Limits, Services
from roomcast.client.session import Policy
from roomcast.config import Config
from roomcast.fleet.roster import Roster
from roomcast.gateway.address import Addresses
from roomcast.gateway.admission import Admission
from roomcast.gateway.body import body_of, media_type
from roomcast.gateway.keys import NODE
from roomcast.gateway.pages import is_on_this_machine, url_parts
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.hooks import ConnectEvent, ConnectReply, PublishEvent, PublishReply
from roomcast.hooks.calls import HookCalls, Hooks, refused
from roomcast.node.node import Node
from roomcast.observe.counters import ClientCounters
from roomcast.rates import Rate, Seldom
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Error

__all__ = ["CONNECTIONS_MAX", "COOKIE", "add_admin_routes"]

# Cookies with its name that are looked at. Paths may differ, so a browser may have a few.
_COOKIES_MAX: Final = 8
# The name of the cookie.
COOKIE: Final = "roomcast_admin"
# Found without splitting: strangers may send 64 KiB of semicolons. What stands before the name does
# not matter, because nobody else can sign a value.
_COOKIE_FORM: Final = re.compile(f"{COOKIE}=([^;]*)")
# Pages that are open at one node.
CONNECTIONS_MAX: Final = 50
# Channels that one page follows.
_CHANNELS_MAX: Final = 8
# Beyond what a call of the page takes: it ends by itself, and says so.
_CALL_ROOM_S: Final = 0.5
# Calls of one page a second, and at once. The page asks every few seconds.
_CALLS: Final = Rate(per_s=20.0, burst=60.0)
# What may wait to be sent to one page: a history, and what a busy channel brings meanwhile.
_QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
_PING_S: Final = 25.0
_PONG_S: Final = 8.0
_STALE_S: Final = 10.0
# Of a login's body beside the password, which JSON may escape six times over.
_LOGIN_BYTES_MAX: Final = PASSWORD_BYTES_MAX * 6 + 256
# Random bytes of a session's name.
_NAME_BYTES: Final = 12
_TOLD: Final = Rate(per_s=1.0, burst=5.0)

_PREFIX: Final = "/admin"
_PAGE: Final = Path(__file__).parent / "page"
# The files that the form to log in needs, which anybody gets.
_OPEN: Final = frozenset({"login.html", "login.js", "style.css", "icon.svg"})
_CONTENT_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere, and no text that becomes HTML: what is published, or what
# somebody is called, can never become code.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger(__name__)


def add_admin_routes(
    app: web.Application, node: Node, config: Config, *, dry_run: DryRun | None = None
) -> None:
    """Adds the page of `node` to `app`. `config.admin` has the hash of a password.

    `dry_run` None: this node cannot run the reaper. Raises ConfigError for a hash that is none.
    """
    admin = _Admin(node, config, Reaping(dry_run))
    page = web.Application(middlewares=[_with_headers])
    page[NODE] = admin.node
    for path in ("", "/"):
        page.router.add_get(path, admin.page)
    for file in sorted(_PAGE.iterdir()):
        if file.suffix in _CONTENT_TYPES and file.name not in ("index.html", "login.html"):
            page.router.add_get(f"/{file.name}", admin.file(file))
    page.router.add_post("/login", admin.login)
    page.router.add_post("/logout", admin.logout)
    page.router.add_post("/ticket", admin.ticket)
    page.router.add_get("/connection", admin.connection)
    page.on_shutdown.append(admin.end_connections)
    page.cleanup_ctx.append(admin.closing)
    app.add_subapp(_PREFIX, page)


class _Admin:
    """The handlers. `node`: of the page's connections."""

    def __init__(self, node: Node, config: Config, reaping: Reaping) -> None:
        text = config.admin.password_hash
        self._clock = node.services.clock
        self._logins = Logins(PasswordHash.read(text), self._clock.monotonic_s())
        self._signer = Signer(text)
        self._session_s = config.admin.session_ttl_s
        self._addresses = Addresses(config.client.trusted_proxies)
        self._reaping = reaping
        self._refused = Seldom(_TOLD)
        payload_bytes_max = config.client.message_size_limit
        self._methods = Methods(
            node, reaping, write=config.admin.write, payload_bytes_max=payload_bytes_max
        )
        hooks = Hooks(connect=self._connect, publish=_publish_refused, rpc=self._methods.registry())
        self.node = Node(
            _services(node.services, HookCalls(hooks, CALL_S + _CALL_ROOM_S)),
            node.health,
            node.orders,
            node.node_info,
            node.inquiries,
            node.emulation,
            node.draining,
            set(),
            connection_limit=CONNECTIONS_MAX,
        )
        self._gateway = WebSocketGateway(
            # The origin is checked here, and more strictly.
            Admission(allowed_origins=("*",)),
            message_size_limit=payload_bytes_max + 4096,
            queue_bytes_max=_QUEUE_BYTES_MAX,
        )
        self._index, self._form = _bytes("index.html"), _bytes("login.html")

    # ---- files

    async def page(self, request: web.Request) -> web.Response:
        """GET /admin."""
        body = self._form if self._session(request) is None else self._index
        return web.Response(body=body, content_type="text/html", charset="utf-8")

    def file(self, path: Path) -> Handler:
        """The handler of one file. It is read once: a request must not wait for a disk."""
        body, kind, is_open = path.read_bytes(), _CONTENT_TYPES[path.suffix], path.name in _OPEN

        async def serve_file(request: web.Request) -> web.Response:
            if not is_open and self._session(request) is None:
                raise web.HTTPUnauthorized(text="Log in first.\n")
            return web.Response(body=body, content_type=kind, charset="utf-8")

        return serve_file

    # ---- sessions

    async def login(self, request: web.Request) -> web.Response:
        """POST /admin/login."""
        _check_own_page(request)
        password = await _password(request)
        names = self._addresses.client(
            request.remote or "", request.headers.getall("X-Forwarded-For", ())
        )
        now_s = self._clock.monotonic_s()
        verdict = await self._logins.judge(names, password, now_s)
        if verdict.wait_s > 0:
            if (passed_over := self._refused.again(now_s)) is not None:
                _log.warning("admin_login_limited", address=names[0], passed_over=passed_over)
            return _json(
                {"wait_s": math.ceil(verdict.wait_s)},
                HTTPStatus.TOO_MANY_REQUESTS,
                {"Retry-After": str(math.ceil(verdict.wait_s))},
            )
        if not verdict.is_right:
            if (passed_over := self._refused.again(now_s)) is not None:
                _log.warning("admin_login_refused", address=names[0], passed_over=passed_over)
            return _json({}, HTTPStatus.UNAUTHORIZED)
        name = secrets.token_urlsafe(_NAME_BYTES)
        session = Session(int(self._now_s() + self._session_s), name)
        _log.warning("admin_login", address=names[0])
        response = _json({"ends_at": session.ends_at}, HTTPStatus.OK)
        response.set_cookie(
            COOKIE,
            self._signer.cookie(session),
            max_age=int(self._session_s),
            path=_PREFIX,
            secure=not _is_plain_loopback(request),
            httponly=True,
            samesite="Strict",
        )
        return response

    async def logout(self, request: web.Request) -> web.Response:
        """POST /admin/logout. The browser forgets the cookie; the page closes its socket."""
        _check_own_page(request)
        response = _json({}, HTTPStatus.OK)
        response.del_cookie(
            COOKIE,
            path=_PREFIX,
            secure=not _is_plain_loopback(request),
            httponly=True,
            samesite="Strict",
        )
        return response

    async def ticket(self, request: web.Request) -> web.Response:
        """POST /admin/ticket."""
        _check_own_page(request)
        if (session := self._session(request)) is None:
            return _json({}, HTTPStatus.UNAUTHORIZED)
        now_s = self._now_s()
        left_s = session.ends_at - now_s
        body = {"ticket": self._signer.ticket(session, now_s), "left_s": math.floor(left_s)}
        return _json(body, HTTPStatus.OK)

    def _session(self, request: web.Request) -> Session | None:
        # Of several cookies with the name, those of another path come first or last: any may be it.
        cookies = ";".join(request.headers.getall("Cookie", ()))
        for found in islice(_COOKIE_FORM.finditer(cookies), _COOKIES_MAX):
            session = self._signer.session_of("cookie", found[1].strip(), self._now_s())
            if session is not None:
                return session
        return None

    def _now_s(self) -> float:
        return self._clock.now_ms() / 1000

    # ---- the WebSocket

    async def connection(self, request: web.Request) -> web.StreamResponse:
        """GET /admin/connection."""
        _check_origin(request)
        if self._session(request) is None:
            raise web.HTTPUnauthorized(text="Log in first.\n")
        return await self._gateway.handle(request)

    async def _connect(self, event: ConnectEvent) -> ConnectReply:
        """The hook that lets a connection in, until its session ends. Raises Refused."""
        shown = event.data.get("ticket") if isinstance(event.data, dict) else None
        session = None
        if isinstance(shown, str) and not event.has_token:
            session = self._signer.session_of("ticket", shown, self._now_s())
        if session is None:
            raise refused(Error.UNAUTHORIZED)
        return ConnectReply(user="admin", expires_at=session.ends_at)

    async def end_connections(self, _app: web.Application) -> None:
        """The node ends: its pages go to another one."""
        self.node.close_all()

    async def closing(self, _app: web.Application) -> AsyncIterator[None]:
        """Its end is that of what runs beside requests."""
        yield
        self._logins.close()
        await self._reaping.close()


async def _publish_refused(_event: PublishEvent) -> PublishReply | None:
    """Publications go through the method, which exists only where they are allowed."""
    raise refused(Error.PERMISSION_DENIED)


def _services(services: Services, hooks: HookCalls) -> Services:
    """`services` for the page's connections: what is shared by clients is not theirs."""
    policy = services.policy
    return replace(
        services,
        policy=Policy(
            rules=_rules(policy.rules),
            # Any channel may be followed. The hooks refuse whatever else that would allow.
            insecure=True,
            allow_anonymous=False,
            channel_limit=_CHANNELS_MAX,
            message_size_limit=policy.message_size_limit,
            asks_publish=True,
            has_methods=True,
        ),
        limits=Limits(
            ping_interval_s=_PING_S,
            pong_timeout_s=_PONG_S,
            stale_close_delay_s=_STALE_S,
            history_publications_max=services.limits.history_publications_max,
            recovery_publications_max=services.limits.recovery_publications_max,
            commands=_CALLS,
        ),
        roster=Roster(),
        departures=Departures(),
        counters=ClientCounters(),
        hooks=hooks,
    )


def _rules(rules: ChannelRules) -> ChannelRules:
    """`rules` for who only looks: no presence of theirs, no joins and leaves, nothing shortened."""

    def seen(options: ChannelOptions) -> ChannelOptions:
        return replace(
            options,
            presence=False,
            join_leave=False,
            force_push_join_leave=False,
            force_recovery=False,
            force_positioning=False,
            allow_channel_compaction=False,
            allowed_delta_types=(),
            # The page's own hooks decide.
            subscribe_proxy_enabled=False,
            publish_proxy_enabled=False,
            sub_refresh_proxy_enabled=False,
        )

    namespaces = {name: seen(options) for name, options in rules.namespaces.items()}
    return ChannelRules(seen(rules.without_namespace), namespaces)


# ---- requests


@web.middleware
async def _with_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer says what the browser may do with it."""
    try:
        response = await handler(request)
    except web.HTTPException as refusal:
        refusal.headers.update(_HEADERS)
        raise
    if response.status != HTTPStatus.SWITCHING_PROTOCOLS:
        response.headers.update(_HEADERS)
    return response


def _check_own_page(request: web.Request) -> None:
    """Raises HTTPForbidden and HTTPUnsupportedMediaType unless this site's own page sends JSON."""
    _check_origin(request)
    if media_type(request) != "application/json":
        raise web.HTTPUnsupportedMediaType(text="Content-Type must be application/json.\n")


def _check_origin(request: web.Request) -> None:
    """Raises HTTPForbidden unless a page of this very host sends the request.

    The scheme may differ: a load balancer takes HTTPS and passes HTTP on.
    """
    origins = request.headers.getall("Origin", ())
    hosts = request.headers.getall("Host", ())
    site = request.headers.get("Sec-Fetch-Site", "same-origin").lower()
    if len(origins) == 1 and len(hosts) == 1 and site == "same-origin":
        origin = url_parts(origins[0])
        is_web = origin.scheme in ("http", "https")
        if is_web and hosts[0] and origin.netloc.lower() == hosts[0].lower():
            return
    raise web.HTTPForbidden(text="Only the operations page of this host may do that.\n")


def _is_plain_loopback(request: web.Request) -> bool:
    """Whether the page is open on this very machine, without TLS and without a proxy.

    Everywhere else the cookie is for HTTPS alone.
    """
    return not request.secure and is_on_this_machine(request)


async def _password(request: web.Request) -> bytes:
    """The password of the body. Raises an HTTPException."""
    try:
        body = await body_of(request, _LOGIN_BYTES_MAX)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body did not come in time.\n") from None
    except web.RequestPayloadError:
        raise web.HTTPBadRequest(text="The body is not encoded as its headers say.\n") from None
    if body is None:
        raise web.HTTPRequestEntityTooLarge(_LOGIN_BYTES_MAX, 0, text="The body is too long.\n")
    try:
        found = orjson.loads(body)
        given = found["password"] if isinstance(found, dict) else None
        if isinstance(given, str):
            return given.encode()
    except (ValueError, KeyError):
        pass
    raise web.HTTPBadRequest(text='The body must be {"password": "…"}.\n')


def _json(
    body: Mapping[str, object], status: HTTPStatus, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, content_type="application/json", headers=headers
    )


def _bytes(name: str) -> bytes:
    return (_PAGE / name).read_bytes()
