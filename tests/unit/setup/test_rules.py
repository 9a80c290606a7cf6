"""service/roomcast/setup/rules.py: what is wrong with a set-up is named, with what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from roomcast.account.readings import Key
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.delivery.canary_rules import canary_item
from roomcast.fleet.lease_record import Lease
from roomcast.setup.readings import (
    Function,
    Queue,
    StreamMapping,
    Subscription,
    Table,
    Topic,
)
from roomcast.setup.rules import (
    CLOCK_REFUSED_MS,
    CLOCK_WARNED_MS,
    FILTER,
    LATELY_MS,
    clock_finding,
    consumer_finding,
    events_finding,
    function_finding,
    generation_finding,
    gets_appends,
    key_finding,
    mapping_finding,
    node_finding,
    place_finding,
    secret_finding,
    skew_finding,
    stream_finding,
    table_finding,
    topic_finding,
    ttl_finding,
    versions_finding,
)

REGION: Final = "eu-west-1"
ACCOUNT: Final = "123456789012"
TOPIC: Final = f"arn:aws:sns:{REGION}:{ACCOUNT}:chat"
TABLE: Final = Table(
    f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/t-channels", "NEW_IMAGE", "arn:stream", "expires_at"
)
MAPPING: Final = StreamMapping("uuid-1", "arn:f", "Enabled", "", "OK", [FILTER], True)
LEASE: Final = Lease("n1", "q-n1", "live", 0, 0, 60_000, subscription_arn=f"{TOPIC}:s1")
QUEUE_ARN: Final = f"arn:aws:sqs:{REGION}:{ACCOUNT}:q-n1"
SUBSCRIPTION: Final = Subscription(f"{TOPIC}:s1", TOPIC, QUEUE_ARN, True, "", False)
NOW: Final = 1_700_000_000_000
LONG: Final = "nN7-aS_kq2 and whatever else there is"


def policy(**changes: Any) -> str:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": QUEUE_ARN,
        "Condition": {"ArnEquals": {"aws:SourceArn": TOPIC}},
        **changes,
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


QUEUE: Final = Queue(QUEUE_ARN, policy(), "")


# ---- tables


def test_a_table_that_is_not_there() -> None:
    assert table_finding("t-channels", TABLE, REGION).outcome == "ok"
    found = table_finding("t-channels", None, REGION)
    assert found.outcome == "failed"
    assert "no table t-channels in eu-west-1" in found.told
    assert "aws.table_prefix" in found.ask


@pytest.mark.parametrize("other", ["us-east-1:123456789012", "eu-west-1:210987654321"])
def test_a_topic_elsewhere(other: str) -> None:
    assert place_finding(TOPIC, TABLE).outcome == "ok"
    found = place_finding(f"arn:aws:sns:{other}:chat", TABLE)
    assert found.outcome == "failed"
    assert "topic of another stack" in found.told
    assert "TopicArn" in found.ask


@pytest.mark.parametrize(
    "view, outcome",
    [("NEW_IMAGE", "ok"), ("NEW_AND_OLD_IMAGES", "ok"), ("", "failed"), ("KEYS_ONLY", "failed")],
)
def test_a_stream(view: str, outcome: str) -> None:
    found = stream_finding("t-channels", replace(TABLE, view=view), REGION)
    assert found.outcome == outcome
    if outcome == "failed":
        assert "update-table --table-name t-channels" in found.ask
        assert ("is off" in found.told) is (view == "")


@pytest.mark.parametrize("attribute, told", [("", "is off"), ("ttl", "by ttl, not by expires_at")])
def test_a_table_that_grows_for_ever(attribute: str, told: str) -> None:
    assert ttl_finding("t", "expires_at", "expires_at", REGION).outcome == "ok"
    found = ttl_finding("t", attribute, "expires_at", REGION)
    assert found.outcome == "warning"
    assert told in found.told
    assert "update-time-to-live --table-name t " in found.ask


# ---- the stream's Lambda


def test_the_filter_is_the_templates() -> None:
    template = Path(__file__).parents[3] / "deploy" / "template.yaml"
    assert f"- Pattern: '{FILTER}'" in template.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes, outcome, told, ask",
    [
        ({}, "ok", "lets appends through", ""),
        (
            {"state": "Disabled", "why": "USER_INITIATED"},
            "failed",
            "uuid-1 is Disabled (USER_INITIATED)",
            "--enabled",
        ),
        (
            {"filters": ['{"eventName":["MODIFY"]}']},
            "failed",
            "keeps what is appended",
            '--filter-criteria \'{"Filters"',
        ),
        (
            {"filters": ['{"dynamodb":{"NewImage":{"no":{"S":["x"]}}}}']},
            "failed",
            "keeps",
            "Filters",
        ),
        (
            {"filters": ['{"dynamodb":{"Keys":{"offset":{"N":[{"numeric":[">",0]}]}}}}']},
            "failed",
            "keeps",
            "Filters",
        ),
        ({"result": "PROBLEM: Function call failed"}, "failed", "Function call failed", "role"),
        ({"filters": []}, "warning", "no filter", "--filter-criteria"),
        ({"reports_items": False}, "warning", "ReportBatchItemFailures", "response-types"),
        ({"filters": ['{"eventName":[{"wildcard":"IN*"}]}']}, "note", "cannot judge", ""),
        ({"filters": ["no JSON"]}, "note", "cannot judge", ""),
        *(
            ({"filters": [f"{each}"]}, "ok", "", "")
            for each in (
                '{"eventName":["INSERT","MODIFY"]}',
                '{"eventName":[{"prefix":"INS"}]}',
                '{"dynamodb":{"NewImage":{"pubs":{"S":[{"exists":true}]}}}}',
                '{"dynamodb":{"OldImage":[{"exists":false}]}}',
                '{"dynamodb":{"Keys":{"offset":{"N":[{"anything-but":"0"}]}}}}',
            )
        ),
        ({"filters": ['{"eventName":["MODIFY"]}', FILTER]}, "ok", "", ""),
    ],
)
def test_an_event_source_mapping(
    changes: dict[str, Any], outcome: str, told: str, ask: str
) -> None:
    found = mapping_finding([replace(MAPPING, **changes)], REGION)
    assert found.outcome == outcome, found
    assert told in found.told
    assert ask in found.ask
    assert bool(found.ask) is (outcome in ("failed", "warning"))


def test_a_stream_that_nobody_reads() -> None:
    found = mapping_finding([], REGION)
    assert found.outcome == "failed"
    assert "no Lambda reads" in found.told


def test_the_mapping_of_events_is_not_that_of_appends() -> None:
    marked = '{"dynamodb":{"NewImage":{"events":{"S":[{"exists":true}]}}}}'
    events = replace(MAPPING, filters=(marked,))
    assert not gets_appends(events)
    assert mapping_finding([events], REGION).outcome == "failed"
    assert mapping_finding([events, MAPPING], REGION).outcome == "ok"


@pytest.mark.parametrize(
    "view, states, outcome, told",
    [
        ("NEW_AND_OLD_IMAGES", ["Disabled", "Enabled"], "ok", "Enabled"),
        ("NEW_AND_OLD_IMAGES", ["Disabled"], "failed", "its mapping is Disabled"),
        ("NEW_AND_OLD_IMAGES", [], "failed", "no Lambda reads"),
        ("NEW_IMAGE", ["Enabled"], "failed", "is of NEW_IMAGE"),
        ("", [], "failed", "is off"),
    ],
)
def test_what_events_are_made_of(view: str, states: list[str], outcome: str, told: str) -> None:
    mappings = [replace(MAPPING, state=state) for state in states]
    found = events_finding(replace(TABLE, view=view), mappings, REGION)
    assert (found.name, found.outcome) == ("events Lambda", outcome)
    assert told in found.told
    assert bool(found.ask) is (outcome == "failed")


def test_of_several_mappings_one_is_enough() -> None:
    broken = replace(MAPPING, state="Disabled")
    assert mapping_finding([broken, MAPPING], REGION).outcome == "ok"


@pytest.mark.parametrize(
    "function, shards, outcome, told",
    [
        (Function("f", TOPIC, ""), 1, "ok", "f publishes"),
        (Function("f", TOPIC, "1"), 4, "ok", "f publishes"),
        (Function("f", TOPIC, "4"), 4, "ok", "f publishes"),
        (Function("f", TOPIC, "8"), 4, "failed", "goes by 8 topic shards"),
        (Function("f", TOPIC + "-old", ""), 1, "failed", f"publishes to {TOPIC}-old"),
        (Function("f", "", ""), 1, "note", "no ROOMCAST_TOPIC_ARN"),
    ],
)
def test_where_the_lambda_publishes(
    function: Function, shards: int, outcome: str, told: str
) -> None:
    found = function_finding(function, TOPIC, shards)
    assert (found.outcome, told in found.told) == (outcome, True), found
    assert bool(found.ask) is (outcome == "failed")


# ---- topic, queues and subscriptions


def test_a_topic_that_is_not_there() -> None:
    assert topic_finding(TOPIC, Topic(TOPIC, "")).outcome == "ok"
    found = topic_finding(TOPIC, None)
    assert (found.outcome, f"no topic {TOPIC}" in found.told) == ("failed", True)


def test_a_consumers_queue_gives_up_on_what_nobody_can_carry_out() -> None:
    url = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders"
    found = [
        consumer_finding("orders", url, queue, REGION)
        for queue in (
            None,
            Queue(QUEUE_ARN, "", ""),
            *(Queue(QUEUE_ARN, "", "", n) for n in (4, 5)),
        )
    ]
    assert [each.outcome for each in found] == ["failed", "warning", "warning", "ok"]
    assert {each.name for each in found} == {"consumer orders"}
    assert "no dead-letter queue" in found[1].told
    assert url in found[1].ask
    attributes = json.loads(found[1].ask.split("'")[1])
    assert json.loads(attributes["RedrivePolicy"])["maxReceiveCount"] == "20"
    assert "after 4 receives" in found[2].told


def test_the_queue_that_a_node_makes_is_right() -> None:
    made = SqsInstanceQueue(
        control=None, poll=None, sns=None, topic_arn=TOPIC, tags=dict, shards=4
    )._attributes("q-n1")
    queue = Queue(QUEUE_ARN, made["Policy"], "")
    assert node_finding(LEASE, queue, SUBSCRIPTION, TOPIC, 4).outcome == "ok"


@pytest.mark.parametrize(
    "changes",
    [
        {"Effect": "Deny"},
        {"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}},
        {"Action": "sqs:ReceiveMessage"},
        {"Resource": QUEUE_ARN + "2"},
        {"Condition": {"ArnEquals": {"aws:SourceArn": TOPIC + "-old"}}},
        {"Condition": {"ArnNotEquals": {"aws:SourceArn": TOPIC}}},
        {"Condition": {"StringEquals": {"aws:SourceAccount": "210987654321"}}},
    ],
)
def test_a_policy_that_keeps_the_topic_out(changes: dict[str, Any]) -> None:
    queue = replace(QUEUE, policy=policy(**changes))
    found = node_finding(LEASE, queue, SUBSCRIPTION, TOPIC, 1)
    assert found.outcome == "failed"
    assert "its policy does not let sns.amazonaws.com send" in found.told
    assert "roomcast drain n1" in found.ask


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"Statement": 1}'])
def test_no_policy_lets_nobody_in(text: str) -> None:
    found = node_finding(LEASE, replace(QUEUE, policy=text), SUBSCRIPTION, TOPIC, 1)
    assert found.outcome == "failed"


@pytest.mark.parametrize(
    "changes",
    [
        {"Principal": "*"},
        {"Principal": {"AWS": "*"}},
        {"Action": ["SQS:*"]},
        {"Action": "sqs:Send*"},
        {"Resource": "*"},
        {"Condition": {"ArnLike": {"aws:SourceArn": "arn:aws:sns:*:*:ch*t"}}},
        {"Condition": {}},
        {"Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}}},
    ],
)
def test_a_policy_that_lets_the_topic_in(changes: dict[str, Any]) -> None:
    queue = replace(QUEUE, policy=policy(**changes))
    assert node_finding(LEASE, queue, SUBSCRIPTION, TOPIC, 1).outcome == "ok"


def test_a_node_of_another_stack_is_not_told_to_make_its_queue_anew() -> None:
    other = TOPIC + "-old"
    queue = replace(QUEUE, policy=policy(Condition={"ArnEquals": {"aws:SourceArn": other}}))
    found = node_finding(LEASE, queue, replace(SUBSCRIPTION, topic_arn=other), TOPIC, 1)
    assert "the topic of another stack" in found.told
    assert "delete" not in found.ask


def test_a_policy_for_the_base_topic_alone() -> None:
    found = node_finding(LEASE, QUEUE, SUBSCRIPTION, TOPIC, 2)
    assert found.outcome == "failed"
    assert f"for {TOPIC}-shard-0" in found.told


@pytest.mark.parametrize(
    "changes, told, ask",
    [
        ({"is_raw": False}, "raw message delivery is off", "RawMessageDelivery"),
        ({"filter_policy": '{"a":["b"]}'}, "filter policy, which keeps", "FilterPolicy"),
        ({"topic_arn": TOPIC + "-old"}, "topic of another stack", "TopicArn"),
        ({"endpoint": QUEUE_ARN + "-old"}, f"goes to {QUEUE_ARN}-old", "delete this queue"),
        ({"is_pending": True}, "is not subscribed", "delete this queue"),
    ],
)
def test_a_subscription(changes: dict[str, Any], told: str, ask: str) -> None:
    found = node_finding(LEASE, QUEUE, replace(SUBSCRIPTION, **changes), TOPIC, 1)
    assert (found.name, found.outcome) == ("queue of n1", "failed")
    assert told in found.told
    assert ask in found.ask


def test_an_empty_filter_policy_filters_nothing() -> None:
    subscription = replace(SUBSCRIPTION, filter_policy="{}")
    assert node_finding(LEASE, QUEUE, subscription, TOPIC, 1).outcome == "ok"


def test_what_is_gone() -> None:
    assert "there is no queue q-n1" in node_finding(LEASE, None, None, TOPIC, 1).told
    assert "is not subscribed" in node_finding(LEASE, QUEUE, None, TOPIC, 1).told


# ---- keys

KEY: Final = Key(
    "arn:key",
    True,
    True,
    json.dumps(
        {
            "Statement": [
                {"Effect": "Allow", "Principal": {"AWS": "arn:root"}, "Action": "kms:*"},
                {
                    "Effect": "Allow",
                    "Principal": {"Service": ["sns.amazonaws.com"]},
                    "Action": ["kms:GenerateDataKey*", "kms:Decrypt"],
                },
            ]
        }
    ),
    [],
)


def test_a_key_of_queues_must_be_sns_as_well() -> None:
    assert key_finding("queues", KEY, sends=True).outcome == "ok"
    without = replace(
        KEY, policy=json.dumps({"Statement": json.loads(KEY.policy)["Statement"][:1]})
    )
    found = key_finding("queues", without, sends=True)
    assert found.outcome == "failed"
    assert "kms:GenerateDataKey and kms:Decrypt" in found.told
    assert '"Service": "sns.amazonaws.com"' in found.ask
    assert key_finding("tables", without, sends=False).outcome == "ok"


def test_aws_own_key_is_none_for_queues() -> None:
    found = key_finding("queues", replace(KEY, is_customers=False), sends=True)
    assert (found.outcome, "AWS's own" in found.told) == ("failed", True)


def test_a_key_that_is_disabled() -> None:
    found = key_finding("tables", replace(KEY, is_enabled=False), sends=False)
    assert (found.outcome, "not enabled" in found.told) == ("failed", True)
    assert "enable-key" in found.ask


# ---- clocks, releases, generations, secrets


@pytest.mark.parametrize(
    "ahead_ms, outcome, told",
    [
        (CLOCK_WARNED_MS, "ok", "agrees"),
        (-CLOCK_WARNED_MS - 1000, "warning", "3 s behind"),
        (CLOCK_REFUSED_MS, "failed", "300 s ahead of"),
        (-CLOCK_REFUSED_MS, "failed", "300 s behind"),
    ],
)
def test_a_clock(ahead_ms: int, outcome: str, told: str) -> None:
    found = clock_finding(NOW + ahead_ms, NOW)
    assert (found.outcome, told in found.told) == (outcome, True), found


def test_clocks_of_nodes() -> None:
    right = replace(LEASE, node="n2", skew_ms=-200)
    assert skew_finding([LEASE, right]).outcome == "ok"
    wrong = replace(LEASE, node="n3", instance="i-3", skew_ms=-90_000)
    found = skew_finding([right, wrong, replace(LEASE, skew_ms=3000)])
    assert found.outcome == "warning"
    assert "the clock of n3 (i-3) is 90 s behind, 2 nodes in all" in found.told


def test_releases() -> None:
    old, new = replace(LEASE, version="0.1.0"), replace(LEASE, version="0.2.0")
    assert versions_finding([], "0.2.0").outcome == "ok"
    assert versions_finding([new, new], "0.2.0").outcome == "ok"
    assert versions_finding([old], "0.2.0").outcome == "note"
    found = versions_finding([new, old, new], "0.2.0")
    assert found.outcome == "warning"
    assert found.told.startswith("1 node of 0.1.0, 2 nodes of 0.2.0: an old release beside")


@pytest.mark.parametrize(
    "generation, age_ms, outcome",
    [("0", 0, "ok"), ("1", 0, "failed"), ("1", LATELY_MS + 1, "note")],
)
def test_generations(generation: str, age_ms: int, outcome: str) -> None:
    newest = canary_item(7, node="n1", batch="b", now=NOW, generation=generation)
    found = generation_finding(newest, "0", NOW + age_ms)
    assert found.outcome == outcome
    if outcome == "failed":
        assert "n1 writes in generation '1', and aws.log_generation is '0'" in found.told
    assert generation_finding(None, "0", NOW).outcome == "note"
    own = canary_item(8, node="doctor-1", batch="b", now=NOW, generation="0")
    assert "run it again" in generation_finding(own, "0", NOW).told


@pytest.mark.parametrize(
    "secret, api_key, insecure, outcome, told",
    [
        (LONG, LONG, False, "ok", ""),
        ("", "", False, "ok", ""),
        (LONG, "", True, "warning", "client.insecure"),
        ("secret", "", False, "failed", "hmac_secret_key is what everybody tries"),
        (LONG, "a" * 64, False, "failed", "http_api.key has fewer than 8 different"),
        ("kK2-xz91Qm4!", "", False, "warning", "shorter than 32 bytes"),
    ],
)
def test_secrets(secret: str, api_key: str, *, insecure: bool, outcome: str, told: str) -> None:
    secrets = {"client.token.hmac_secret_key": secret, "http_api.key": api_key}
    found = secret_finding(secrets, insecure=insecure, bytes_min=32)
    assert (found.outcome, told in found.told) == (outcome, True), found
    assert not secret or secret == "secret" or secret not in found.told + found.ask
