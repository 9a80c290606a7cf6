"""service/roomcast/consumers/commands.py: messages carried out by a node in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from roomcast.config import AwsSqsConfig, PublicationDataModeConfig
from roomcast.consumers.commands import CONSUMED, Commands
from roomcast.consumers.messages import QueueMessage
from roomcast.consumers.rules import Failed
from roomcast.gateway.api.methods import CONTAINERS_MAX
from roomcast.log.idempotency import RETRY_WITHIN_MS
from roomcast.ports import Rejected, UnknownOutcome
from tests.unit.worlds import Fleet, LocalNode, until

SIZE_LIMIT = 4096
FORM = AwsSqsConfig()


class Sender:
    """A back end whose messages one node carries out."""

    def __init__(self, node: LocalNode) -> None:
        self.node = node
        self.commands = Commands(node.assembly.node, SIZE_LIMIT)

    async def send(
        self,
        body: Any,
        id_: str = "message-1",
        *,
        age_ms: int = 0,
        form: AwsSqsConfig = FORM,
        **attributes: str,
    ) -> None:
        now_ms = self.node.clock.now_ms()
        named = {name.replace("_", "-"): value for name, value in attributes.items()}
        text = body if isinstance(body, str) else json.dumps(body)
        message = QueueMessage(id_, text, named, "receipt", 1, now_ms - age_ms, 1)
        await self.commands.carry_out(message, form, now_ms)

    async def publish(self, id_: str = "message-1", /, **params: Any) -> None:
        payload = {"channel": "lobby", "data": 1} | params
        await self.send({"method": "publish", "payload": payload}, id_)

    async def refusal(self, body: Any, **options: Any) -> tuple[str, bool]:
        with pytest.raises(Failed) as raised:
            await self.send(body, **options)
        return raised.value.reason, raised.value.again

    def stored(self, channel: str = "lobby") -> list[Any]:
        return [
            entry["data"]
            for item in self.node.world.stream
            if item.channel == channel
            for entry in json.loads(item.pubs)
        ]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def sender(fleet: Fleet) -> Sender:
    return Sender(fleet.node())


async def test_one_publication_however_often_a_message_comes_and_to_whom(fleet: Fleet) -> None:
    one, other = Sender(fleet.node("a")), Sender(fleet.node("b"))
    await asyncio.gather(*(each.publish() for each in (one, other, one)))
    await other.publish()
    assert one.stored() == [1]
    await one.publish("message-2")
    assert one.stored() == [1, 1]


async def test_a_lost_answer_comes_again_as_the_same_publication(sender: Sender) -> None:
    sender.node.world.fail_next("put_keyed_item", UnknownOutcome("simulated"), "applied")
    await sender.publish()
    await sender.publish()
    assert sender.stored() == [1]


async def test_a_key_of_its_own_goes_before_the_message_id(sender: Sender) -> None:
    await sender.publish("message-1", idempotency_key="order-1")
    await sender.publish("message-2", idempotency_key="order-1")
    assert sender.stored() == [1]


async def test_a_broadcast_has_the_key_in_each_channel_with_history(sender: Sender) -> None:
    payload = {"channels": ["lobby", "plain:1", "hall"], "data": 2}
    for _ in range(2):
        await sender.send({"method": "broadcast", "payload": payload})
    assert sender.stored() == sender.stored("hall") == [2]
    assert sender.node.assembly.node.services.publisher.signalled == 2, "without history: again"


async def test_channels_without_history_need_no_key(sender: Sender) -> None:
    await sender.publish(channel="plain:1")
    await sender.publish(skip_history=True)
    assert sender.stored() == []
    assert sender.node.assembly.node.services.publisher.signalled == 2


async def test_publication_mode_keeps_the_bytes(sender: Sender) -> None:
    form = AwsSqsConfig(publication_data_mode=PublicationDataModeConfig(enabled=True))
    body = '{ "price": 1.10 }'
    await sender.send(body, form=form, centrifugo_channels="lobby,hall", centrifugo_tag_kind="note")
    [entry] = json.loads(sender.node.world.stream[0].pubs)
    assert entry["text"] == body
    assert entry["tags"] == {"kind": "note"}
    assert sender.stored("hall") == [{"price": 1.1}]


async def test_other_methods_that_change_something(sender: Sender) -> None:
    assert set(CONSUMED) == {
        "publish",
        "broadcast",
        "subscribe",
        "unsubscribe",
        "disconnect",
        "refresh",
        "history_remove",
    }
    client = await sender.node.client()
    async with sender.node.sending():
        await sender.send({"method": "disconnect", "payload": {"user": "", "client": client.id}})
        await until(lambda: client.socket.closed_with)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("{", ("unreadable", False)),
        ({"method": "history", "payload": {"channel": "a"}}, ("unreadable", False)),
        ({"method": "drain", "payload": {}}, ("unreadable", False)),
        ({"method": "publish"}, ("bad_request", False)),
        (
            {"method": "publish", "payload": {"channel": "none:1", "data": 1}},
            ("unknown_channel", False),
        ),
        (
            {"method": "publish", "payload": {"channel": "a", "data": "x" * SIZE_LIMIT}},
            ("limit_exceeded", False),
        ),
        ("[" * (CONTAINERS_MAX + 1), ("limit_exceeded", False)),
        (
            {"method": "broadcast", "payload": {"channels": ["a", "none:1"], "data": 1}},
            ("unknown_channel", False),
        ),
        (
            {
                "method": "publish",
                "payload": {"channel": "plain:1", "data": 1, "idempotency_key": "k"},
            },
            ("not_available", False),
        ),
    ],
)
async def test_what_never_will_be_carried_out(
    sender: Sender, body: Any, expected: tuple[str, bool]
) -> None:
    assert await sender.refusal(body) == expected


async def test_what_the_table_refuses_comes_again(sender: Sender) -> None:
    body = {"method": "publish", "payload": {"channel": "lobby", "data": 1}}
    sender.node.world.fail_next("put_keyed_item", Rejected("no permission"))
    assert await sender.refusal(body) == ("internal", True)
    await sender.send(body)
    assert sender.stored() == [1]


async def test_nothing_is_published_after_the_key_may_have_expired(sender: Sender) -> None:
    body = {"method": "publish", "payload": {"channel": "lobby", "data": 1}}
    assert await sender.refusal(body, age_ms=RETRY_WITHIN_MS + 1) == ("too_old", False)
    assert sender.stored() == []
    await sender.send(body, age_ms=RETRY_WITHIN_MS)
    assert sender.stored() == [1]


async def test_a_fault_of_ours_comes_again(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sender.node.assembly.appender, "submit", broken)
    body = {"method": "publish", "payload": {"channel": "lobby", "data": 1}}
    assert await sender.refusal(body) == ("fault", True)


async def test_one_message_is_read_in_a_turn(sender: Sender) -> None:
    """Each may be as large as a request."""
    turns: list[int] = []
    turn = 0

    async def count() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    counting = asyncio.create_task(count())
    read = sender.commands._done

    async def noted(*arguments: Any) -> None:
        turns.append(turn)
        await read(*arguments)

    sender.commands._done = noted  # type: ignore[method-assign,assignment]  # only so it is seen
    await asyncio.gather(
        *(sender.publish(f"message-{number}", data=number) for number in range(10))
    )
    counting.cancel()
    assert len(set(turns)) == 10
    assert sender.stored() == list(range(10)), "in the order of the receive"
