"""What roomcast does not have, and the published SDKs or cent have; and the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import cent
import centrifuge
import pytest

from tests.acceptance.conftest import OpenPeer
from tests.acceptance.link import Link
from tests.acceptance.peers import PROTOBUF, SDKS
from tests.acceptance.roomcast import Dev

PYTHON = pytest.mark.parametrize("sdk", ["py", f"py{PROTOBUF}"])


@pytest.fixture
def back_end(dev: Dev) -> Iterator[cent.Client]:
    """At instance 1."""
    client = cent.Client(f"{dev.urls[0]}/api", "any key: the server is insecure")
    yield client
    client._session.close()


@pytest.mark.parametrize("sdk", ["js", f"js{PROTOBUF}"])
@pytest.mark.parametrize("kind", ["map", "shared_poll"])
async def test_other_subscriptions_are_refused(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str, kind: str
) -> None:
    ann = await peer(sdk, dev.ws_urls[0])
    await ann.call("subscribe_otherwise", channel=channel, type=kind)
    ended = await ann.event("unsubscribed", channel=channel)
    assert (ended["code"], ended["reason"]) == (108, "not available")
    # The connection stays.
    await ann.subscribe(f"{channel}-another")


@pytest.mark.parametrize("sdk", SDKS)
async def test_in_json_payloads_are_values(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    text = '{"a" :   [1.0, 1E2]}'
    ann = await peer(f"js{PROTOBUF}", dev.ws_urls[1])
    async with Link(dev.ws_urls[0]) as link:
        bob = await peer(sdk, link.url)
        await bob.subscribe(channel)
        await ann.publish_text(channel, text)
        await bob.event("publication", channel=channel, data=json.loads(text))
        # It comes as it was written, and the SDK shows what it means.
        assert text.encode() in link.received
        await bob.disconnect()


@PYTHON
@pytest.mark.usefixtures("dev")
def test_what_the_sdk_for_python_does_not_have(sdk: str) -> None:
    assert sdk.startswith("py")
    names = {*dir(centrifuge.Client), *dir(centrifuge.ClientEventHandler)}
    for word in ("send", "batching", "message", "map", "poll"):
        assert not [name for name in names if word in name and not name.startswith("_")], word


def test_what_of_cent_is_not_there(back_end: cent.Client) -> None:
    requests: list[tuple[Callable[[Any], Any], Any]] = [
        (back_end.connections, cent.ConnectionsRequest(user="ann", expression="true")),
        (back_end.update_user_status, cent.UpdateUserStatusRequest(users=["ann"])),
        (back_end.get_user_status, cent.GetUserStatusRequest(users=["ann"])),
        (back_end.delete_user_status, cent.DeleteUserStatusRequest(users=["ann"])),
        (back_end.block_user, cent.BlockUserRequest(user="ann")),
        (back_end.unblock_user, cent.UnblockUserRequest(user="ann")),
        (back_end.revoke_token, cent.RevokeTokenRequest(uid="one")),
        (back_end.invalidate_user_tokens, cent.InvalidateUserTokensRequest(user="ann")),
        (back_end.device_list, cent.DeviceListRequest()),
        (back_end.device_update, cent.DeviceUpdateRequest()),
        (back_end.device_remove, cent.DeviceRemoveRequest()),
        (back_end.device_topic_list, cent.DeviceTopicListRequest()),
        (back_end.user_topic_list, cent.UserTopicListRequest()),
        (back_end.update_push_status, cent.UpdatePushStatusRequest(analytics_uid="1", status="")),
        (back_end.cancel_push, cent.CancelPushRequest(uid="one")),
    ]
    for method, request in requests:
        with pytest.raises(cent.CentTransportError) as refused:
            method(request)
        assert refused.value.status_code == 404, request
