"""Calls of AWS that read and change nothing, each with the permission that it needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError

from roomcast.account.ports import NotAllowed
from roomcast.account.readings import Key
from roomcast.aws.errors import (
    ATTEMPTS_MAX,
    CALL_LIMIT_S,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    demand_request_ids,
    error_code,
    port_errors,
)
from roomcast.ports import Rejected

__all__ = ["KEY_PERMISSIONS", "Reading", "reading_clients"]

# What `Reading.key` needs.
KEY_PERMISSIONS: Final[Mapping[tuple[str, str], str]] = {
    ("kms", "describe_key"): "kms:DescribeKey",
    ("kms", "get_key_policy"): "kms:GetKeyPolicy",
    ("kms", "list_grants"): "kms:ListGrants",
}
# Pages of one list. More of anything than they hold is far beyond what the checks are for.
_PAGES_MAX: Final = 100
_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
)
# Where an answer says that more follows, and how to ask for it: EC2 and Service Quotas, ELB and
# KMS, Lambda.
_MARKERS: Final[Mapping[str, str]] = {"NextToken": "NextToken", "NextMarker": "Marker"}


@asynccontextmanager
async def reading_clients(
    services: Iterable[str],
    *,
    region: str | None,
    endpoint_url: str | None,
    session: aioboto3.Session | None = None,
    attempts: int = ATTEMPTS_MAX,
) -> AsyncIterator[Mapping[str, Any]]:
    """Clients by service, under the environment's credentials. Raises PortError."""
    config = AioConfig(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": attempts},
        user_agent_extra="roomcast",
    )
    async with AsyncExitStack() as stack:
        async with port_errors(CALL_LIMIT_S):
            chosen = session or aioboto3.Session()
            clients: dict[str, Any] = {}
            for service in services:
                client = await stack.enter_async_context(
                    chosen.client(
                        service, region_name=region, endpoint_url=endpoint_url, config=config
                    )
                )
                demand_request_ids(client)
                clients[service] = client
        yield clients


class Reading:
    """Makes calls. `clients`: the SDK's, by service. `permissions`: that of each call, by the
    SDK's client and method.
    """

    def __init__(
        self, clients: Mapping[str, Any], permissions: Mapping[tuple[str, str], str]
    ) -> None:
        self._clients = clients
        self._permissions = permissions

    async def call(
        self, service: str, method: str, *, unless: Collection[str] = (), **params: Any
    ) -> Any:
        """One call. None = AWS answers with one of the codes `unless`.

        Raises NotAllowed, or another PortError.
        """
        async with port_errors(CALL_LIMIT_S):
            try:
                return await getattr(self._clients[service], method)(**params)
            except ClientError as error:
                code = error_code(error)
                if code in unless:
                    return None
                if code in _DENIED:
                    raise NotAllowed(self._permissions[service, method]) from error
                raise

    async def pages(
        self,
        service: str,
        method: str,
        field: str,
        params: Mapping[str, Any],
        *,
        unless: Collection[str] = (),
    ) -> list[Any]:
        """All of a list. Each service has its own names for where a page ends."""
        found: list[Any] = []
        start: dict[str, Any] = {}
        for _ in range(_PAGES_MAX):
            answer = await self.call(service, method, unless=unless, **params, **start)
            if answer is None:
                return found
            found += answer.get(field, ())
            following = next((name for name in _MARKERS if answer.get(name)), None)
            if following is None:
                return found
            start = {_MARKERS[following]: answer[following]}
        raise Rejected(f"more than {_PAGES_MAX} pages of {field}")

    async def key(self, key: str) -> Key:
        """A key of KMS, by its ARN, id or alias. Raises NotAllowed, or another PortError."""
        about = (await self.call("kms", "describe_key", KeyId=key))["KeyMetadata"]
        arn = str(about["Arn"])
        is_customers = about.get("KeyManager") == "CUSTOMER"
        policy, users = "", []
        if is_customers:
            answer = await self.call("kms", "get_key_policy", KeyId=arn, PolicyName="default")
            policy = str(answer["Policy"])
            grants = await self.pages("kms", "list_grants", "Grants", {"KeyId": arn})
            users = [str(grant.get("GranteePrincipal", "")) for grant in grants]
        return Key(arn, is_customers, bool(about["Enabled"]), policy, users)
