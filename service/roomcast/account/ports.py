"""What is read of an account and a region. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from roomcast.account.readings import Bucket, Identity, Key, Quota
from roomcast.ports import Rejected

__all__ = ["AccountReader", "NotAllowed"]


class NotAllowed(Rejected):
    """The caller may not make the call. `permission`: what IAM calls it."""

    def __init__(self, permission: str) -> None:
        super().__init__(f"{permission} is not allowed")
        self.permission = permission


class AccountReader(Protocol):
    """The calls that the checks need. Each raises NotAllowed, or another PortError."""

    async def identity(self) -> Identity: ...

    async def quota(self, service: str, code: str) -> Quota | None:
        """The quota that is in effect. None: Service Quotas does not know it."""

    async def quotas(self, service: str) -> Sequence[Quota]:
        """All quotas of a service that Service Quotas knows."""

    async def concurrency(self) -> int:
        """How many Lambda functions may run at once."""

    async def vcpus_of(self, instance_type: str) -> int | None:
        """None: there is no such type here."""

    async def standard_vcpus(self) -> int:
        """The vCPUs of the on-demand instances of the standard families that run."""

    async def count(self, what: str) -> int:
        """How many of COUNTED there are."""

    async def zones(self) -> Sequence[str]:
        """The zones that may be used, in the order of their names."""

    async def zones_of(self, instance_type: str) -> Sequence[str]:
        """The zones in which the type is offered."""

    async def endpoint_zones(self) -> Mapping[str, Sequence[str]]:
        """The zones of each endpoint service, by its short name, such as "sqs"."""

    async def volume_key(self) -> str:
        """The key that encrypted volumes are under if they name none."""

    async def key(self, key: str) -> Key: ...

    async def bucket(self, name: str) -> Bucket: ...
