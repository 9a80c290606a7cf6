"""An account in memory: a new one, as far as a test says nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from roomcast.account.ports import NotAllowed
from roomcast.account.readings import Bucket, Identity, Key, Quota
from roomcast.account.rules import COUNTED, INSTANCE_SERVICES, INTERFACE_SERVICES, TASK_SERVICES
from roomcast.ports import UnknownOutcome

__all__ = ["Account"]

ZONES: Final = ["eu-central-1a", "eu-central-1b"]


class Account:
    """An AccountReader. `denied`, `broken`: calls that are refused, or not answered."""

    def __init__(self) -> None:
        self.values = {
            "L-1216C47A": 5.0, "L-3032A538": 6.0, "L-F678F1CE": 5.0, "L-A4707A72": 5.0,
            "L-1B52E74A": 20.0, "L-29B6F2EB": 50.0, "L-53DA6B97": 50.0, "L-0263D0A3": 5.0,
        }  # fmt: skip
        self.denied: set[str] = set()
        self.broken: set[str] = set()
        self.read: list[str] = []
        self.own_key = "alias/aws/ebs"

    def _reads(self, name: str) -> None:
        self.read.append(name)
        if name in self.denied:
            raise NotAllowed(f"some:{name}")
        if name in self.broken:
            raise UnknownOutcome("no answer in time")

    async def identity(self) -> Identity:
        self._reads("identity")
        return Identity("123456789012", "arn:aws:iam::123456789012:user/ann", "eu-central-1")

    async def quota(self, service: str, code: str) -> Quota | None:
        self._reads("quota")
        return Quota(service, code, code, self.values[code]) if code in self.values else None

    async def quotas(self, service: str) -> Sequence[Quota]:
        self._reads("quotas")
        return [Quota(service, "L-SNS", "Messages Published per Second", 1500)]

    async def concurrency(self) -> int:
        self._reads("concurrency")
        return 10

    async def vcpus_of(self, instance_type: str) -> int | None:
        self._reads("vcpus_of")
        return {"c7g.medium": 1, "c7i.large": 2}.get(instance_type)

    async def standard_vcpus(self) -> int:
        self._reads("standard_vcpus")
        return 0

    async def count(self, what: str) -> int:
        self._reads("count")
        assert what in COUNTED
        return 1

    async def zones(self) -> Sequence[str]:
        self._reads("zones")
        return ZONES

    async def zones_of(self, instance_type: str) -> Sequence[str]:
        self._reads("zones_of")
        return ZONES

    async def endpoint_zones(self) -> Mapping[str, Sequence[str]]:
        self._reads("endpoint_zones")
        return dict.fromkeys(
            (*INTERFACE_SERVICES, *INSTANCE_SERVICES, *TASK_SERVICES, "s3", "dynamodb"), ZONES
        )

    async def volume_key(self) -> str:
        self._reads("volume_key")
        return self.own_key

    async def key(self, key: str) -> Key:
        self._reads("key")
        return Key(key, True, True, "{}", [])

    async def bucket(self, name: str) -> Bucket:
        self._reads("bucket")
        return Bucket("eu-central-1", "")
