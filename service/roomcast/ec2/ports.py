"""The machine and its Auto Scaling group, as the life cycle of an instance needs them."""

from __future__ import annotations

from typing import Protocol

from roomcast.ec2.rules import Outlook

__all__ = ["Machine", "Neighbours", "ScalingGroup", "StopRequest"]


class Machine(Protocol):
    """The EC2 instance that this process runs on, as its metadata tell."""

    @property
    def id(self) -> str:
        """The instance id."""

    async def outlook(self) -> Outlook:
        """What is about to happen to it.

        Within a few seconds. Raises Throttled, UnknownOutcome, Refused.
        """


class ScalingGroup(Protocol):
    """One machine in its Auto Scaling group.

    The group waits at a lifecycle hook for what the machine has to say.
    """

    async def complete(self, hook: str) -> bool:
        """The machine may go on to its next state.

        False = nothing waited at `hook` for it, which is no failure.

        Raises Throttled, UnknownOutcome, Refused.
        """

    async def heartbeat(self, hook: str) -> bool:
        """The group is to wait at `hook` for another time-out.

        False = it does not wait. Errors as `complete`.
        """


class Neighbours(Protocol):
    """The other nodes of this machine."""

    async def others_here(self) -> bool:
        """Whether one of them still holds a lease. Raises PortError."""


class StopRequest(Protocol):
    """How this process is told to end: an `asyncio.Event`."""

    def set(self) -> None: ...
