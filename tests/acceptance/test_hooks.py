"""The example of docs/hooks.md, as it stands there, behind the published SDKs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.conftest import OpenPeer, running
from tests.acceptance.peers import CLIENTS, Refused
from tests.acceptance.roomcast import Dev, roomcast
from tests.acceptance.snippets import marked

PAGE: Final = "docs/hooks.md"
TEST: Final = "test_hooks.py"
EITHER = pytest.mark.parametrize("sdk", CLIENTS)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example's files, in a directory of their own;
    the section that ends the configuration is told of it.
    """
    directory = tmp_path_factory.mktemp("chat")
    (directory / "chat_hooks.py").write_text(marked(PAGE, TEST, "python"))
    path = directory / "roomcast.toml"
    path.write_text(f'{marked(PAGE, TEST, "toml")}directory = "{directory}"\n')
    return str(path)


@pytest.fixture(scope="module")
def hooked(config: str) -> Iterator[Dev]:
    """`roomcast dev` with the example, for all tests of this file."""
    with running("--config", config) as started:
        yield started


def session(name: str) -> dict[str, Any]:
    return {"data": {"session": name}}


@EITHER
async def test_the_example(hooked: Dev, peer: OpenPeer, sdk: str) -> None:
    ann = await peer(sdk, hooked.ws_urls[0], **session("s-1"))
    bob = await peer(sdk, hooked.ws_urls[1], **session("s-2"))
    assert [each.events[-1]["data"] for each in (ann, bob)] == [{"hello": "ann"}, {"hello": "bob"}]
    assert await ann.rpc("rooms", {}) == ["team:board", "team:garden"]
    assert await bob.rpc("rooms", {}) == ["team:garden"]
    assert (await ann.subscribe("team:garden"))["data"] == {"role": "owner"}
    assert (await bob.subscribe("team:garden"))["data"] == {"role": "guest"}

    text = f"from {sdk}"
    await bob.publish("team:garden", {"text": f"  {text} ", "more": 1})
    for each in (ann, bob):
        message = await each.event("publication", channel="team:garden", data={"text": text})
        assert message["info"]["user"] == "bob"
        assert message["info"]["conn_info"] == {"name": "Bob"}
    # The reply to the subscribe allowed it, and no rule does.
    assert (await ann.history("team:garden"))["publications"][-1]["data"] == {"text": text}


@EITHER
async def test_the_example_says_no(hooked: Dev, peer: OpenPeer, sdk: str) -> None:
    stranger = await peer(sdk, hooked.ws_urls[0], connected=False, **session("s-3"))
    await stranger.call("connect")
    assert (await stranger.event("disconnected"))["code"] == 401
    bob = await peer(sdk, hooked.ws_urls[0], **session("s-2"))
    await bob.call("subscribe", channel="team:board")
    assert (await bob.event("unsubscribed", channel="team:board"))["code"] == 403
    for channel, data, code in (
        ("team:garden", {"text": " "}, 422),
        ("team:board", {"text": "hi"}, 103),
    ):
        with pytest.raises(Refused) as refused:
            await bob.publish(channel, data)
        assert refused.value.code == code
    with pytest.raises(Refused) as refused:
        await bob.rpc("nothing", {})
    assert refused.value.code == 104


def test_the_example_is_in_order(config: str) -> None:
    checked = roomcast("checkconfig", "--config", config)
    assert checked.returncode == 0
    assert checked.stderr == ""


def test_a_hook_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text(
        '[aws]\ntopic_arn = "arn:aws:sns:us-east-1:000000000000:roomcast"\n[hooks]\n'
        'connect = "chat_gone:connect"\n'
        '[node]\nimds_endpoint = ""\n'
    )
    refused = roomcast("serve", "--port", "0", "--config", str(path))
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.splitlines()[-1] == (
        "roomcast: hooks.connect: chat_gone cannot be imported: ModuleNotFoundError: No module "
        "named 'chat_gone'"
    )
