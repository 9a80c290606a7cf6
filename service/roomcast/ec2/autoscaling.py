"""Completes and extends the lifecycle hooks of an Auto Scaling group for one instance."""

from __future__ import annotations

from typing import Any, Final

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, error_code, port_errors

__all__ = ["AutoScalingInstance"]

# The code of every invalid call. Only the text shows that nothing waits at the hook.
_VALIDATION: Final = "ValidationError"
_NOTHING_WAITS: Final = "no active lifecycle action found"


class AutoScalingInstance:
    """A ScalingGroup.

    `client`: an Auto Scaling client. Its own retries are harmless.
    """

    def __init__(self, client: Any, *, group: str, instance: str) -> None:
        self._client = client
        # By instance id, because only the event contains the token. An instance waits at one hook
        # at a time.
        self._whom = {"AutoScalingGroupName": group, "InstanceId": instance}

    async def complete(self, hook: str) -> bool:
        # ABANDON would skip later hooks of others.
        return await self._tell(
            self._client.complete_lifecycle_action, hook, {"LifecycleActionResult": "CONTINUE"}
        )

    async def heartbeat(self, hook: str) -> bool:
        return await self._tell(self._client.record_lifecycle_action_heartbeat, hook, {})

    async def _tell(self, call: Any, hook: str, parameters: dict[str, str]) -> bool:
        async with port_errors(CALL_LIMIT_S):
            try:
                await call(LifecycleHookName=hook, **self._whom, **parameters)
            except ClientError as error:
                if _nothing_waits(error):
                    return False
                raise
        return True


def _nothing_waits(error: ClientError) -> bool:
    text = str(error.response.get("Error", {}).get("Message", ""))
    return error_code(error) == _VALIDATION and _NOTHING_WAITS in text.lower()
