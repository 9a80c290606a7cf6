"""The EC2 instance metadata service, version 2.

It tells what this machine is, and what is about to happen to it.

A plain HTTP service at a link-local address, read with a session token that it gives out itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from roomcast.ec2.rules import Outlook, spot_notice, target_of
from roomcast.ports import Clock, PortError, Refused, Throttled, UnknownOutcome

__all__ = [
    "ANSWER_BYTES_MAX",
    "CALL_LIMIT_S",
    "DEFAULT_ENDPOINT",
    "PROBES_MAX",
    "TOKEN_EARLY_S",
    "TOKEN_TTL_S",
    "InstanceMetadata",
    "says_ec2",
    "this_machine",
]

DEFAULT_ENDPOINT: Final = "http://169.254.169.254"
# It is on the same host: an answer takes a millisecond, or does not come.
CALL_LIMIT_S: Final = 1.0
# Attempts to reach it before a node goes without it for its whole life.
PROBES_MAX: Final = 2
# The longest that it gives a token for.
TOKEN_TTL_S: Final = 21_600
# A token is replaced so much before its end.
TOKEN_EARLY_S: Final = 600.0
# Of what is read here nothing is longer than 200 bytes.
ANSWER_BYTES_MAX: Final = 4096

_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{8,32}")
# A header of our own making must be one line of ASCII.
_TOKEN: Final = re.compile(r"[!-~]{1,1024}")

_TOKEN_PATH: Final = "/latest/api/token"  # noqa: S105  # a path
_ID_PATH: Final = "/latest/meta-data/instance-id"
_TARGET_PATH: Final = "/latest/meta-data/autoscaling/target-lifecycle-state"
_SPOT_PATH: Final = "/latest/meta-data/spot/instance-action"

_OK: Final = 200
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def this_machine(endpoint: str, clock: Clock) -> AsyncIterator[InstanceMetadata | None]:
    """This machine's metadata.

    None where it is no EC2 instance, or one whose metadata may not be read.

    `endpoint` "" = do not ask. At the default address only a machine that says it is of EC2 is
    asked, so that no other one waits for an answer.
    """
    if not endpoint or (
        endpoint.rstrip("/") == DEFAULT_ENDPOINT and not await asyncio.to_thread(says_ec2)
    ):
        yield None
        return
    timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)
    # No proxy from the environment (aiohttp's default): it would ask for somebody else's.
    async with aiohttp.ClientSession(timeout=timeout) as session:
        metadata = InstanceMetadata(session, endpoint, clock)
        yield metadata if await _is_there(metadata) else None


def says_ec2(sys_directory: Path = Path("/sys")) -> bool:
    """Whether this machine says that it is an EC2 instance.

    On Nitro and bare metal its vendor tells, on Xen the hypervisor.
    """
    vendor = _line(sys_directory / "devices/virtual/dmi/id/sys_vendor")
    return vendor == "Amazon EC2" or _line(sys_directory / "hypervisor/uuid").startswith("ec2")


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


async def _is_there(metadata: InstanceMetadata) -> bool:
    error: PortError | None = None
    for _ in range(PROBES_MAX):
        try:
            await metadata.identify()
            return True
        except PortError as failure:
            error = failure
    _log.warning("instance_metadata_unreachable", reason=str(error))
    return False


class InstanceMetadata:
    """A Machine. `identify` must have succeeded before `id` means anything."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str, clock: Clock) -> None:
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._clock = clock
        self._token = ""
        self._token_until_s = float("-inf")
        self.id = ""

    async def identify(self) -> None:
        """Read the instance's id. Raises Throttled, UnknownOutcome, Refused."""
        text = await self._get(_ID_PATH)
        if not _INSTANCE_ID.fullmatch(text):
            raise Refused("the instance metadata have no instance id")
        self.id = text

    async def outlook(self) -> Outlook:
        target = target_of(await self._get(_TARGET_PATH))
        return Outlook(target, spot_notice(await self._get(_SPOT_PATH)))

    async def _get(self, path: str) -> str:
        """A value, "" when there is none."""
        status, text = await self._ask(
            "GET", path, {"X-aws-ec2-metadata-token": await self._valid_token()}
        )
        if status == _UNAUTHORIZED:
            # The machine was hibernated, perhaps, or became another one: its tokens are void.
            self._token = ""
            token = await self._valid_token()
            status, text = await self._ask("GET", path, {"X-aws-ec2-metadata-token": token})
        if status == _NOT_FOUND:
            return ""
        _check(status, path)
        return text

    async def _valid_token(self) -> str:
        now_s = self._clock.monotonic_s()
        if not self._token or now_s >= self._token_until_s:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
            status, text = await self._ask("PUT", _TOKEN_PATH, ttl)
            _check(status, _TOKEN_PATH)
            if not _TOKEN.fullmatch(text):
                raise Refused("the instance metadata gave no token")
            self._token, self._token_until_s = text, now_s + TOKEN_TTL_S - TOKEN_EARLY_S
        return self._token

    async def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        try:
            # A redirect would take the token elsewhere.
            async with self._session.request(
                method, self._endpoint + path, headers=headers, allow_redirects=False
            ) as response:
                return response.status, (await _body(response)).decode("ascii", "replace").strip()
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or "no answer in time"
            raise UnknownOutcome(
                f"instance metadata: {type(error).__name__}: {reason}"[:200]
            ) from error


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Raises Refused beyond ANSWER_BYTES_MAX."""
    body = b""
    async for part in response.content.iter_any():
        body += part
        if len(body) > ANSWER_BYTES_MAX:
            raise Refused(f"instance metadata: more than {ANSWER_BYTES_MAX} bytes")
    return body


def _check(status: int, path: str) -> None:
    if status == _OK:
        return
    text = f"instance metadata: status {status} for {path}"
    if status == _TOO_MANY_REQUESTS:
        raise Throttled(text)
    if status >= _SERVER_ERROR:
        raise UnknownOutcome(text)
    # 403: they are switched off for this instance.
    raise Refused(text)
