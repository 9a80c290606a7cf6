"""Signs requests to Lambda function URLs and API Gateways with our credentials (SigV4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiobotocore.session import get_session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError

from roomcast.ports import PortError

__all__ = ["HttpSigner"]

# What the caller adds besides: its own headers go unsigned, as those that proxies change would.
_ADDED: Final = ("Authorization", "X-Amz-Date", "X-Amz-Security-Token")


class HttpSigner:
    """Credentials are found as every AWS tool finds them, and renewed. `ready` comes first."""

    def __init__(self) -> None:
        self._credentials: Any = None

    async def ready(self) -> None:
        """Find the credentials. Raises PortError when there are none."""
        try:
            self._credentials = await get_session().get_credentials()
        except BotoCoreError as error:
            raise PortError(f"credentials of AWS: {error}") from error
        if self._credentials is None:
            raise PortError("credentials of AWS: there are none")

    async def headers(
        self, url: str, body: bytes, *, service: str, region: str
    ) -> Mapping[str, str]:
        """The headers that a POST of `body` to `url` needs besides its own.

        Raises PortError when the credentials could not be renewed.
        """
        assert self._credentials is not None, "it was made ready"
        try:
            frozen = await self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise PortError(f"credentials of AWS: {error}") from error
        request = AWSRequest(method="POST", url=url, data=body)
        SigV4Auth(frozen, service, region).add_auth(request)
        return {each: request.headers[each] for each in _ADDED if each in request.headers}
