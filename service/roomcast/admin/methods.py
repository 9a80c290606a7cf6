"""What the page asks, and what it may change: methods of the protocol's `rpc`.

Methods that the server API has as well are the server API's own. Those that change something exist
only with `admin.write`. What another node knows comes by an inquiry, and names the nodes that did
not answer in time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog

from roomcast.admin.reaping import Reaping
from roomcast.auth.claims import TokenError
from roomcast.auth.summary import names_a_channel, summary
from roomcast.auth.verifier import TOKEN_CHARS_MAX, CountedVerifier
from roomcast.concurrency import Turns
from roomcast.fleet.inquiries import Fleet
from roomcast.fleet.inquiry_signals import Inquiry
from roomcast.fleet.order_signals import ID_CHARS_MAX, USER_CHARS_MAX
from roomcast.gateway.api.fields import CHANNEL, Parameter, Text, Whole, read
from roomcast.gateway.api.methods import CALLER, ApiCall, Containers
from roomcast.gateway.api.refusals import Refusal
from roomcast.gateway.api.server import METHODS
from roomcast.hooks import Refused, RpcEvent, RpcRegistry
from roomcast.hooks.events import MESSAGE_CHARS_MAX
from roomcast.log.history import read_history
from roomcast.node.node import Node
from roomcast.ports import PortError
from roomcast.presence.ports import TooManyMembers
from roomcast.wire.codes import Error
from roomcast.wire.encoding import Sent
from roomcast.wire.publication import BASE64_DATA, Json

__all__ = ["CALL_S", "HISTORY_MAX", "MEMBERS_MAX", "PAYLOAD_CHARS_MAX", "WRITES", "Methods"]

# Methods of the server API that change something: they need `admin.write`.
WRITES: Final = ("publish", "unsubscribe", "disconnect", "drain")
# Publications of one look at a history, and characters of each payload that are shown.
HISTORY_MAX: Final = 50
PAYLOAD_CHARS_MAX: Final = 4 * 1024
# Members of one look at a channel's presence.
MEMBERS_MAX: Final = 200
# Members that are shown in one turn of the event loop: an info may have 16 KiB of arrays.
_MEMBERS_A_TURN: Final = 8
# Characters of one member's info that are shown.
_INFO_CHARS_MAX: Final = 512
# Seconds for an answer. A call ends before the page gives it up, and says that it did.
CALL_S: Final = 4.0
# Turns that calls of the server API take of their own here: a person makes few.
_TURNS: Final = 1

Asked = Mapping[str, Any]

_log = structlog.get_logger(__name__)


class Methods:
    """The methods of one node's page.

    `write`: those that change something exist. `payload_bytes_max`: bytes of a publication's data.
    """

    def __init__(
        self, node: Node, reaping: Reaping, *, write: bool, payload_bytes_max: int
    ) -> None:
        self._node = node
        self._reaping = reaping
        self._write = write
        self._payload_bytes_max = payload_bytes_max
        self._turns = Turns(_TURNS)
        self._methods: dict[str, Callable[[Asked], Awaitable[Json]]] = {
            "hello": self._hello,
            "fleet": self._fleet,
            "busiest": self._busiest,
            "channel": self._channel,
            "presence": self._presence,
            "history": self._history,
            "clients": self._clients,
            "check_token": self._check_token,
        }
        if reaping.is_available:
            self._methods |= {"reap": self._reap, "reap_state": self._reap_state}

    @property
    def names(self) -> tuple[str, ...]:
        """All that the page may call."""
        return (*self._methods, *(WRITES if self._write else ()))

    def registry(self) -> RpcRegistry:
        """The methods for the connections of the page."""
        registry = RpcRegistry()
        for name, method in self._methods.items():
            registry.method(name)(_reading(method))
        for name in self.names[len(self._methods) :]:
            registry.method(name)(_writing(name, self._server_api))
        return registry

    # ---- the node and its fleet

    async def _hello(self, _asked: Asked) -> Json:
        services = self._node.services
        return {
            "node": self._node.id,
            "version": services.version,
            "write": self._write,
            "methods": list(self.names),
            "namespaces": sorted(services.policy.rules.namespaces),
        }

    async def _fleet(self, _asked: Asked) -> Json:
        fleet, now_ms = await self._inquired(Inquiry("figures")), self._now_ms()
        return {
            "now_ms": now_ms,
            "own": fleet.own,
            "more": fleet.more,
            "leases_age_s": round(fleet.leases_age_s, 1),
            "dead": [
                {
                    "node": lease.node,
                    "heartbeat_age_s": max(0, now_ms - lease.heartbeat_at) // 1000,
                }
                for lease in fleet.dead
            ],
            "nodes": [
                {
                    "node": lease.node,
                    "instance": lease.instance,
                    "version": lease.version,
                    "state": lease.state,
                    "uptime_s": max(0, now_ms - lease.started_at) // 1000,
                    "heartbeat_age_s": max(0, now_ms - lease.heartbeat_at) // 1000,
                    "connections": lease.connections,
                    "users": lease.users,
                    "channels": lease.channels,
                    "lag_ms": lease.lag_ms,
                    "skew_ms": lease.skew_ms,
                    "figures": fleet.reports.get(lease.node),
                    "late_s": round(fleet.late.get(lease.node, 0.0), 1),
                }
                for lease in fleet.leases
            ],
        }

    async def _busiest(self, _asked: Asked) -> Json:
        fleet = await self._inquired(Inquiry("busiest"))
        reports = [each for each in fleet.reports.values() if "channels" in each]
        return {"silent": _silent(fleet), "reports": reports}

    # ---- one channel

    async def _channel(self, asked: Asked) -> Json:
        channel = read(_CHANNEL_ONLY, asked)["channel"]
        options = self._node.services.policy.rules.options(channel)
        if options is None:
            raise Refusal(Error.UNKNOWN_CHANNEL)
        fleet = await self._inquired(Inquiry("channel", channel=channel))
        return {
            "subscribers": [
                {"node": node, "subscribers": report.get("subscribers")}
                for node, report in fleet.reports.items()
            ],
            "silent": _silent(fleet),
            "history": options.has_history,
            "history_size": options.history_size,
            "history_ttl_s": options.history_ttl_s,
            "presence": options.presence,
        }

    async def _presence(self, asked: Asked) -> Json:
        channel, services = read(_CHANNEL_ONLY, asked)["channel"], self._node.services
        options = services.policy.rules.options(channel)
        if options is None or not options.presence:
            raise Refusal(Error.NOT_AVAILABLE, "the channel has no presence")
        try:
            members = await services.presence.members(channel)
        except TooManyMembers:
            raise Refusal(Error.LIMIT_EXCEEDED, "the channel has too many members") from None
        shown: list[Mapping[str, Json]] = []
        for number, each in enumerate(list(members.values())[:MEMBERS_MAX]):
            if number % _MEMBERS_A_TURN == 0:
                await services.turns.wait()
            shown.append(
                {
                    "client": each.client,
                    "user": each.user[:_INFO_CHARS_MAX],
                    "info": _cut(each.conn_info, _INFO_CHARS_MAX),
                }
            )
        return {"num_clients": len(members), "members": shown}

    async def _history(self, asked: Asked) -> Json:
        given, services = read(_HISTORY, asked), self._node.services
        options = services.policy.rules.options(given["channel"])
        if options is None or not options.has_history:
            raise Refusal(Error.NOT_AVAILABLE, "the channel has no history")
        async with services.histories.of(CALLER):
            history = await read_history(
                services.log,
                services.clock,
                given["channel"],
                options,
                since=None,
                limit=given["limit"],
                reverse=True,
            )
        publications: list[Mapping[str, Json]] = []
        for sent in history.sent:
            # Each may have 64 KiB of arrays.
            await services.turns.wait()
            publications.append(_publication(sent))
        return {
            "epoch": history.position.epoch,
            "offset": history.position.offset,
            "publications": publications,
        }

    # ---- clients and tokens

    async def _clients(self, asked: Asked) -> Json:
        given = read(_CLIENTS, asked)
        inquiry = Inquiry("clients", user=given["user"], client=given["client"])
        fleet = await self._inquired(inquiry)
        return {
            "nodes": [
                {"node": node, "count": report.get("count"), "clients": report.get("clients")}
                for node, report in fleet.reports.items()
                if report.get("count")
            ],
            "silent": _silent(fleet),
        }

    async def _check_token(self, asked: Asked) -> Json:
        token, now_s = read(_TOKEN, asked)["token"].strip(), self._now_ms() / 1000
        verifier = self._node.services.verifier
        if isinstance(verifier, CountedVerifier):
            verifier = verifier.uncounted
        if not verifier.enabled:
            return {"valid": False, "reason": "this server has no key: it takes no token"}
        try:
            if names_a_channel(token):
                return {"valid": True, **summary(await verifier.subscription(token, now_s))}
            return {"valid": True, **summary(await verifier.connection(token, now_s))}
        except TokenError as error:
            return {"valid": False, "reason": str(error)}

    # ---- cleaning up

    async def _reap(self, _asked: Asked) -> Json:
        self._reaping.start()
        return dict(self._reaping.state())

    async def _reap_state(self, _asked: Asked) -> Json:
        return dict(self._reaping.state())

    # ---- what changes something

    async def _server_api(self, name: str, asked: Asked) -> Json:
        """Calls the server API's method `name`."""
        method = METHODS[name]
        containers = Containers()
        call = ApiCall(
            self._node, self._now_ms(), False, self._payload_bytes_max, containers, self._turns
        )
        return dict(await method.handler(call, read(method.fields, asked)))

    # ---- within

    async def _inquired(self, inquiry: Inquiry) -> Fleet:
        fleet = await self._node.inquiries.ask(inquiry)
        if fleet is None:
            raise Refusal(Error.TOO_MANY_REQUESTS, "too many questions are under way")
        return fleet

    def _now_ms(self) -> int:
        return self._node.services.clock.now_ms()


_CHANNEL_ONLY: Final = (Parameter("channel", CHANNEL, "Which channel.", required=True),)
_HISTORY: Final = (
    *_CHANNEL_ONLY,
    Parameter("limit", Whole(1, HISTORY_MAX), "How many at most.", default=HISTORY_MAX),
)
_CLIENTS: Final = (
    Parameter("user", Text(USER_CHARS_MAX), "Whose; empty: anonymous ones.", default=""),
    Parameter("client", Text(ID_CHARS_MAX), "The one with this id.", default=""),
)
_TOKEN: Final = (Parameter("token", Text(TOKEN_CHARS_MAX), "The token.", required=True),)


def _reading(method: Callable[[Asked], Awaitable[Json]]) -> Callable[[RpcEvent], Awaitable[Json]]:
    async def call(event: RpcEvent) -> Json:
        return await _answered(event.method, method(_asked(event)))

    return call


def _writing(
    name: str, method: Callable[[str, Asked], Awaitable[Json]]
) -> Callable[[RpcEvent], Awaitable[Json]]:
    async def call(event: RpcEvent) -> Json:
        asked = _asked(event)
        # Who did what to whom, and nothing of what was published.
        about = {
            key: str(asked[key])[:USER_CHARS_MAX]
            for key in ("channel", "user", "client", "node")
            if asked.get(key)
        }
        _log.warning("admin_write", method=name, page=event.client, **about)
        return await _answered(name, method(name, asked))

    return call


def _asked(event: RpcEvent) -> Asked:
    return event.data if isinstance(event.data, dict) else {}


async def _answered(name: str, answering: Awaitable[Json]) -> Json:
    """The answer. Raises Refused, in words for the person at the page."""
    try:
        async with asyncio.timeout(CALL_S):
            return await answering
    except TimeoutError:
        reason = "not done in time, and may be carried out all the same"
        raise Refused(Error.INTERNAL.value.code, reason) from None
    except Refusal as refusal:
        code = refusal.error.value
        raise Refused(code.code, (refusal.why or code.message)[:MESSAGE_CHARS_MAX]) from None
    except PortError as error:
        _log.warning("admin_failed", method=name, reason=str(error))
        reason = f"AWS does not answer as it should: {error}"
        raise Refused(Error.INTERNAL.value.code, reason[:MESSAGE_CHARS_MAX]) from None


def _silent(fleet: Fleet) -> list[str]:
    """The nodes that did not answer in time."""
    return [
        lease.node
        for lease in fleet.leases
        if lease.node not in fleet.reports and lease.state != "starting"
    ]


def _publication(sent: Sent) -> Mapping[str, Json]:
    """As people read it. `text`: of the payload, as its publisher wrote it where that is known.
    Bytes are in base64.
    """
    told = json.loads(sent.line)
    if sent.is_binary:
        text = f"base64 {told[BASE64_DATA]}"
    elif sent.text is not None:
        text = sent.text.decode(errors="replace")
    else:
        text = json.dumps(told.get("data"), ensure_ascii=False, separators=(",", ":"))
    info = told.get("info") or {}
    return {
        "offset": told.get("offset", 0),
        "time": told.get("time"),
        "user": str(info.get("user", ""))[:_INFO_CHARS_MAX],
        "client": info.get("client", ""),
        "tags": told.get("tags"),
        "text": text[:PAYLOAD_CHARS_MAX],
        "chars": len(text),
    }


def _cut(value: Json, chars_max: int) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)[:chars_max]
