"""Reads the EC2 instance metadata, version 2: this machine's id, and its announced future.

The service is plain HTTP at a link-local address. It needs a session token, which it issues itself.
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
from roomcast.ports import Clock, PortError, Rejected, Throttled, UnknownOutcome

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
# The service is on the same host: an answer takes a millisecond, or does not come.
CALL_LIMIT_S: Final = 1.0
# Attempts to reach the service, one in CALL_LIMIT_S. If they fail, the node does without it for its
# whole life.
PROBES_MAX: Final = 2
# The longest life of a token.
TOKEN_TTL_S: Final = 21_600
# How long before its end a token is replaced.
TOKEN_EARLY_S: Final = 600.0
# The values that are read here have at most 200 bytes.
ANSWER_BYTES_MAX: Final = 4096

_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{8,32}")
# The token goes into a header, so it must be one line of ASCII.
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

    None if it is no EC2 instance, or its metadata may not be read.

    `endpoint` "" = do not ask. The default address is asked only on machines that identify as EC2,
    so that no other machine waits for an answer.
    """
    if not endpoint or (
        endpoint.rstrip("/") == DEFAULT_ENDPOINT and not await asyncio.to_thread(says_ec2)
    ):
        yield None
        return
    timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)
    # Without a proxy from the environment (aiohttp's default), which would ask for another
    # machine's metadata.
    async with aiohttp.ClientSession(timeout=timeout) as session:
        metadata = InstanceMetadata(session, endpoint, clock)
        yield metadata if await _is_there(metadata) else None


def says_ec2(sys_directory: Path = Path("/sys")) -> bool:
    """Whether this machine identifies as an EC2 instance.

    Nitro and bare metal show it as the vendor, Xen through the hypervisor.
    """
    vendor = _line(sys_directory / "devices/virtual/dmi/id/sys_vendor")
    return vendor == "Amazon EC2" or _line(sys_directory / "hypervisor/uuid").startswith("ec2")


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


async def _is_there(metadata: InstanceMetadata) -> bool:
    time, error = asyncio.get_running_loop().time, None
    for probe in range(PROBES_MAX):
        began_s = time()
        try:
            await metadata.identify()
            return True
        except PortError as failure:
            error = failure
        if probe + 1 < PROBES_MAX and not isinstance(error, Rejected):
            # A machine whose network is just coming up fails at once, and again at once.
            await asyncio.sleep(max(0.0, CALL_LIMIT_S - (time() - began_s)))
    _log.warning("instance_metadata_unreachable", reason=str(error))
    return False


class InstanceMetadata:
    """A Machine. `id` is valid once `identify` has succeeded."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str, clock: Clock) -> None:
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._clock = clock
        self._token = ""
        self._token_until_s = float("-inf")
        self.id = ""

    async def identify(self) -> None:
        """Reads the instance's id. Raises Throttled, UnknownOutcome, Rejected."""
        text = await self._get(_ID_PATH)
        if not _INSTANCE_ID.fullmatch(text):
            raise Rejected("the instance metadata have no instance id")
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
            # The machine may have hibernated, or become another one: its tokens are void.
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
                raise Rejected("the instance metadata gave no token")
            self._token, self._token_until_s = text, now_s + TOKEN_TTL_S - TOKEN_EARLY_S
        return self._token

    async def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        try:
            # A redirect would send the token elsewhere.
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
    """Reads the answer. Raises Rejected beyond ANSWER_BYTES_MAX."""
    body = b""
    async for part in response.content.iter_any():
        body += part
        if len(body) > ANSWER_BYTES_MAX:
            raise Rejected(f"instance metadata: more than {ANSWER_BYTES_MAX} bytes")
    return body


def _check(status: int, path: str) -> None:
    if status == _OK:
        return
    text = f"instance metadata: status {status} for {path}"
    if status == _TOO_MANY_REQUESTS:
        raise Throttled(text)
    if status >= _SERVER_ERROR:
        raise UnknownOutcome(text)
    # 403: the metadata are switched off for this instance.
    raise Rejected(text)
