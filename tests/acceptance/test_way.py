"""The way of a message from one instance to another: table, stream, Lambda, topic,
queue, and no other.
"""

from __future__ import annotations

import asyncio
import json
import time

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.peers import Peer
from tests.acceptance.roomcast import Aws, Dev, Witness

# From instance to instance and back to the test, one after the other: some 100 ms each.
ROUNDS = 10


async def _ann_and_bob(
    secured: Dev, peer: OpenPeer, token: Token, *channels: str
) -> tuple[Peer, Peer]:
    """Ann on instance 1, Bob on instance 2, both in `channels`."""
    ann = await peer("js", secured.ws_urls[0], token("ann"))
    bob = await peer("py", secured.ws_urls[1], token("bob"))
    for channel in channels:
        await ann.subscribe(channel)
        await bob.subscribe(channel)
    return ann, bob


async def test_only_the_stream_leads_from_one_instance_to_another(
    secured: Dev, aws: Aws, witness: Witness, peer: OpenPeer, secured_token: Token, channel: str
) -> None:
    stored, live = f"room:{channel}", f"live:{channel}"
    ann, bob = await _ann_and_bob(secured, peer, secured_token, stored, live)
    with secured.pump_suspended():
        await ann.publish(stored, "by the table")
        # Acknowledged is in the table, and on its way to those who are on the same instance.
        assert aws.log(stored) == [(1, "by the table")]
        await ann.event("publication", channel=stored)
        # Without history it goes straight to the topic: topic and queues work,
        # for far longer than the way by the table takes, and what is on that way does not come.
        for number in range(ROUNDS):
            await ann.publish(live, f"round {number}")
            await bob.event("publication", channel=live, data=f"round {number}")
        await asyncio.to_thread(witness.until_heard, f"round {ROUNDS - 1}")
        assert not any("by the table" in body for body in witness.bodies)
        assert bob.received(stored) == []
    await bob.event("publication", channel=stored)
    await asyncio.to_thread(witness.until_heard, "by the table")
    await ann.publish(stored, "afterwards")
    await bob.event("publication", channel=stored, data="afterwards")
    assert bob.received(stored) == ann.received(stored) == [(1, "by the table"), (2, "afterwards")]
    assert aws.log(stored) == bob.received(stored)
    rounds = [(0, f"round {number}") for number in range(ROUNDS)]
    assert bob.received(live) == ann.received(live) == rounds


async def test_what_waited_for_the_pump_comes_once_and_in_order(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str
) -> None:
    channel = f"room:{channel}"
    ann, bob = await _ann_and_bob(secured, peer, secured_token, channel)
    with secured.pump_suspended():
        for number in range(1, 31):
            await ann.publish(channel, number)
    await bob.event("publication", channel=channel, data=30)
    assert bob.received(channel) == [(number, number) for number in range(1, 31)]


async def test_a_message_that_never_reached_the_queue_is_read_from_the_table(
    secured: Dev, aws: Aws, witness: Witness, peer: OpenPeer, secured_token: Token, channel: str
) -> None:
    channel, live = f"room:{channel}", f"live:{channel}"
    ann, bob = await _ann_and_bob(secured, peer, secured_token, channel, live)
    subscription = aws.subscription_of(secured.nodes[1])
    aws.sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
    await ann.publish(channel, "lost on the way")
    await asyncio.to_thread(witness.until_heard, "lost on the way")
    aws.sns.subscribe(
        TopicArn=aws.topic_arn,
        Protocol="sqs",
        Endpoint=subscription["Endpoint"],
        Attributes={"RawMessageDelivery": "true"},
    )
    # Bob's instance hears again, and has not heard of it.
    await ann.publish(live, "hello again")
    await bob.event("publication", channel=live)
    assert bob.received(channel) == []
    await ann.publish(channel, "the next")
    await bob.event("publication", channel=channel, data="the next")
    assert bob.received(channel) == [(1, "lost on the way"), (2, "the next")]


async def test_what_the_topic_repeats_and_reorders_comes_once_and_in_order(
    secured: Dev, aws: Aws, witness: Witness, peer: OpenPeer, secured_token: Token, channel: str
) -> None:
    channel = f"room:{channel}"
    ann, bob = await _ann_and_bob(secured, peer, secured_token, channel)
    for number in (1, 2):
        await ann.publish(channel, f"message {number}")
        await bob.event("publication", channel=channel)
    bodies = [
        await asyncio.to_thread(witness.until_heard, f"message {number}") for number in (2, 1, 2)
    ]
    for body in bodies:
        aws.sns.publish(TopicArn=aws.topic_arn, Message=body)
    for text in ("not an envelope", '{"v":1,"records":[{"channel":""}]}', '{"v":99,"records":"?"}'):
        aws.sns.publish(TopicArn=aws.topic_arn, Message=text)
    await ann.publish(channel, "message 3")
    for each in (ann, bob):
        await each.event("publication", channel=channel, data="message 3")
        assert each.received(channel) == [(number, f"message {number}") for number in (1, 2, 3)]


async def test_what_another_program_writes_into_the_table_is_broadcast(
    secured: Dev, aws: Aws, peer: OpenPeer, secured_token: Token, channel: str
) -> None:
    channel = f"room:{channel}"
    ann, bob = await _ann_and_bob(secured, peer, secured_token, channel)
    await ann.publish(channel, "from Ann")
    await bob.event("publication", channel=channel)
    first = next(item for item in aws.items(channel) if item["offset"]["N"] == "1")
    pubs = [{"data": {"from": "elsewhere"}}, {"data": "too"}]
    item = {
        **first,
        "offset": {"N": "2"},
        "last": {"N": "3"},
        "pubs": {"S": json.dumps(pubs, indent=1)},
        "batch": {"S": "of another program"},
        "node": {"S": "another program"},
        "ts": {"N": str(int(time.time() * 1000))},
    }
    aws.dynamodb.put_item(TableName="roomcast-channels", Item=item)
    everything = [(1, "from Ann"), (2, {"from": "elsewhere"}), (3, "too")]
    for each in (ann, bob):
        await each.event("publication", channel=channel, offset=3)
        assert each.received(channel) == everything
    # Whoever writes next finds the end of the log where it is now.
    await bob.publish(channel, "from Bob")
    await ann.event("publication", channel=channel, offset=4)
    assert ann.received(channel) == aws.log(channel) == [*everything, (4, "from Bob")]
