"""The ports of the life cycle: the machine, its Auto Scaling group and its other nodes."""

from __future__ import annotations

from typing import Protocol

from roomcast.ec2.rules import Outlook

__all__ = ["Machine", "NodesHere", "ScalingGroup", "StopRequest"]


class Machine(Protocol):
    """The EC2 instance of this process, from its metadata."""

    @property
    def id(self) -> str:
        """The instance id."""

    async def outlook(self) -> Outlook:
        """The machine's announced future.

        Takes a few seconds at most. Raises Throttled, UnknownOutcome, Rejected.
        """


class ScalingGroup(Protocol):
    """One machine in its Auto Scaling group.

    The group waits at a lifecycle hook until the machine reports.
    """

    async def complete(self, hook: str) -> bool:
        """Lets the machine go on to its next state.

        False = nothing waited at `hook` for it, which is no failure.

        Raises Throttled, UnknownOutcome, Rejected.
        """

    async def heartbeat(self, hook: str) -> bool:
        """Makes the group wait at `hook` for another time-out.

        False = it does not wait. Errors as `complete`.
        """


class NodesHere(Protocol):
    """The other nodes of this machine."""

    async def others_here(self) -> bool:
        """Whether one of them still holds a lease. Raises PortError."""


class StopRequest(Protocol):
    """The request to end this process: an `asyncio.Event`."""

    def set(self) -> None: ...
