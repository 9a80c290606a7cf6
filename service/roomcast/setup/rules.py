"""What is wrong with a set-up, and what to do about it.

Pure: readings and a configuration in, findings out. What works and needs attention is a warning;
what keeps publications from getting through has failed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from roomcast.account.readings import Key
from roomcast.account.rules import Finding
from roomcast.delivery.shards import topic_arns
from roomcast.fleet.lease_record import Lease
from roomcast.log.item import LogItem
from roomcast.log.rules import generation_of
from roomcast.setup.readings import (
    Function,
    Queue,
    StreamMapping,
    Subscription,
    Table,
    Topic,
)

__all__ = [
    "CLOCK_REFUSED_MS",
    "CLOCK_WARNED_MS",
    "DOCTOR",
    "EVENTS_FINDING",
    "FILTER",
    "KEY_FINDING",
    "LATELY_MS",
    "MAPPING_FINDING",
    "RECEIVES_MIN",
    "clock_finding",
    "consumer_finding",
    "events_finding",
    "function_finding",
    "generation_finding",
    "gets_appends",
    "key_finding",
    "mapping_finding",
    "node_finding",
    "place_finding",
    "secret_finding",
    "skew_finding",
    "stream_finding",
    "table_finding",
    "topic_finding",
    "ttl_finding",
    "versions_finding",
]

# Machines with NTP differ by milliseconds. AWS refuses what is signed by a clock that is five
# minutes wrong.
CLOCK_WARNED_MS: Final = 2000
CLOCK_REFUSED_MS: Final = 5 * 60 * 1000
# A canary that is older says nothing of the nodes that are there now.
LATELY_MS: Final = 10 * 60 * 1000
# Receives of a consumer's message before it is a dead letter: with the pauses between them
# (consumers/rules.py), five take half a minute to one, and twenty one and a half hours to three.
RECEIVES_MIN: Final = 5
RECEIVES_ADVISED: Final = 20
# What deploy/template.yaml gives the mapping; a test compares them.
FILTER: Final = (
    '{"eventName":["INSERT"],"dynamodb":{"Keys":{"offset":{"N":[{"anything-but":["0"]}]}}}}'
)
# The beginning of the id under which `roomcast doctor` writes.
DOCTOR: Final = "doctor-"
MAPPING_FINDING: Final = "event source mapping"
EVENTS_FINDING: Final = "events Lambda"
KEY_FINDING: Final = "key of KMS"
_REPORTS: Final = "ReportBatchItemFailures"
# What the Lambda must get, as a filter sees it.
_APPEND: Final[Mapping[str, Any]] = {
    "eventName": "INSERT",
    "eventSource": "aws:dynamodb",
    "dynamodb": {
        "Keys": {"channel": {"S": "c"}, "offset": {"N": "7"}},
        "NewImage": {
            **{name: {"S": "s"} for name in ("channel", "epoch", "pubs", "batch", "node")},
            **{name: {"N": "7"} for name in ("offset", "last", "ts", "expires_at")},
        },
        "StreamViewType": "NEW_IMAGE",
    },
}
_EVENTS_VIEW: Final = "NEW_AND_OLD_IMAGES"
_VIEWS: Final = frozenset({"NEW_IMAGE", _EVENTS_VIEW})
# States of a mapping that works, or soon does.
_ON: Final = ("Enabled", "Enabling", "Updating", "Creating")
_SNS: Final = "sns.amazonaws.com"
# A secret of so few different characters can be guessed.
_VARIETY_MIN: Final = 8
# What people write where a secret should be.
_KNOWN_SECRETS: Final = frozenset(
    {"secret", "changeme", "change-me", "password", "my_secret", "your-256-bit-secret", "test"}
)


# ---- tables and their stream


def table_finding(name: str, table: Table | None, region: str) -> Finding:
    """Whether there is a table of this name."""
    title = f"set-up of {name}"
    if table is not None:
        return Finding(title, "ok", table.arn)
    return Finding(
        title,
        "failed",
        f"there is no table {name} in {region}, in the account of these credentials",
        "compare aws.table_prefix and aws.region with the data stack, and whose credentials these "
        f"are: aws dynamodb list-tables --region {region}",
    )


def place_finding(topic_arn: str, table: Table) -> Finding:
    """Whether topic and tables are of one account and region."""
    _, _, _, topic_region, topic_account, *_ = topic_arn.split(":")
    _, _, _, region, account, *_ = table.arn.split(":")
    if (topic_region, topic_account) == (region, account):
        return Finding("place", "ok", f"tables and topic are in {region}, account {account}")
    return Finding(
        "place",
        "failed",
        f"the tables are in {region}, account {account}, and aws.topic_arn is in {topic_region}, "
        f"account {topic_account}: it is the topic of another stack",
        "set aws.topic_arn to the output TopicArn of the data stack that has these tables",
    )


def stream_finding(name: str, table: Table, region: str) -> Finding:
    """Whether the table's stream shows what was written."""
    title = f"stream of {name}"
    if table.view in _VIEWS:
        return Finding(title, "ok", f"shows {table.view}")
    turn_on = (
        f"aws dynamodb update-table --table-name {name} --region {region} "
        "--stream-specification StreamEnabled=true,StreamViewType=NEW_IMAGE"
    )
    if table.view:
        return Finding(
            title,
            "failed",
            f"shows {table.view}: the Lambda needs what was written",
            "turn it off, and on again with another view, and point the event source mapping to "
            f"the new stream: {turn_on}",
        )
    return Finding(
        title,
        "failed",
        "is off: nothing that is published with history reaches other nodes",
        f"{turn_on}; then point the event source mapping to the new stream (another ARN)",
    )


def ttl_finding(name: str, expires_by: str, wanted: str, region: str) -> Finding:
    """Whether what is over leaves the table."""
    title = f"TTL of {name}"
    if expires_by == wanted:
        return Finding(title, "ok", f"rows expire by {wanted}")
    told = f"rows expire by {expires_by}, not by {wanted}" if expires_by else "is off"
    return Finding(
        title,
        "warning",
        f"{told}: the table grows for ever",
        f"aws dynamodb update-time-to-live --table-name {name} --region {region} "
        f"--time-to-live-specification Enabled=true,AttributeName={wanted}",
    )


# ---- the stream's Lambda


def mapping_finding(mappings: Sequence[StreamMapping], region: str) -> Finding:
    """Whether a Lambda gets what is appended. Of several mappings one that works is enough."""
    if not mappings:
        return Finding(
            MAPPING_FINDING,
            "failed",
            "no Lambda reads the table's stream. One that read it before reads another stream now: "
            "a stream that was turned off and on has another ARN",
            "update the stack of template.yaml, which makes the mapping; or point it to the stream "
            "of data.yaml's output ChannelsStreamArn",
        )
    judged = [_judged(mapping, region) for mapping in mappings]
    return min(judged, key=lambda each: ("ok", "note", "warning", "failed").index(each.outcome))


def gets_appends(mapping: StreamMapping) -> bool:
    """Whether its filter lets through what is appended, as far as it can be judged. That of the
    events Lambda lets only through what has a mark.
    """
    return not mapping.filters or any(_accepts(each) is not False for each in mapping.filters)


def events_finding(table: Table, mappings: Sequence[StreamMapping], region: str) -> Finding:
    """Whether a Lambda gets what events are made of: the stream of the presence table."""
    if table.view != _EVENTS_VIEW:
        return Finding(
            EVENTS_FINDING,
            "failed",
            f"the stream of its table is {f'of {table.view}' if table.view else 'off'}, and events "
            f"need {_EVENTS_VIEW}: nobody is told of them",
            "update the stack of data.yaml, which turns it on",
        )
    if not mappings:
        return Finding(
            EVENTS_FINDING,
            "failed",
            "events are wanted, and no Lambda reads the stream of presence: nobody is told of them",
            "set EventsTargetArn and EventsLambdaKey of the stack of template.yaml, or take the "
            "options `events` out",
        )
    on = [each for each in mappings if each.state in _ON]
    if not on:
        states = ", ".join(sorted({each.state or "in no state" for each in mappings}))
        return Finding(
            EVENTS_FINDING,
            "failed",
            f"its mapping is {states}: nobody is told of events",
            f"aws lambda update-event-source-mapping --uuid {mappings[0].uuid} --region {region} "
            "--enabled",
        )
    return Finding(EVENTS_FINDING, "ok", f"{on[0].state}, behind the stream of presence")


def _judged(mapping: StreamMapping, region: str) -> Finding:
    update = f"aws lambda update-event-source-mapping --uuid {mapping.uuid} --region {region}"
    if mapping.state not in _ON:
        why = f" ({mapping.why})" if mapping.why else ""
        return Finding(
            MAPPING_FINDING,
            "failed",
            f"{mapping.uuid} is {mapping.state or 'in no state'}{why}: the Lambda gets nothing",
            f"{update} --enabled",
        )
    if not gets_appends(mapping):
        return Finding(
            MAPPING_FINDING,
            "failed",
            f"its filter keeps what is appended from the Lambda: {'; '.join(mapping.filters)}",
            f"{update} --filter-criteria '{_criteria()}'",
        )
    if "PROBLEM" in mapping.result.upper():
        return Finding(
            MAPPING_FINDING,
            "failed",
            f"its last batch: {mapping.result}",
            "look at the Lambda's log, and at what its role may do: read the stream, publish to "
            "the topics, use their keys",
        )
    if not mapping.filters:
        return Finding(
            MAPPING_FINDING,
            "warning",
            "has no filter: the Lambda is also called for what changes and expires",
            f"{update} --filter-criteria '{_criteria()}'",
        )
    if not mapping.reports_items:
        return Finding(
            MAPPING_FINDING,
            "warning",
            f"does not have {_REPORTS}: after a failure all of a batch is published again",
            f"{update} --function-response-types {_REPORTS}",
        )
    accepted = [_accepts(pattern) for pattern in mapping.filters]
    if None in accepted and True not in accepted:
        return Finding(
            MAPPING_FINDING, "note", f"cannot judge its filter: {'; '.join(mapping.filters)}"
        )
    return Finding(MAPPING_FINDING, "ok", f"{mapping.state}, and lets appends through")


def _criteria() -> str:
    return json.dumps({"Filters": [{"Pattern": FILTER}]})


def _accepts(pattern: str) -> bool | None:
    """Whether a filter lets an append through. None: it has what is not known here."""
    try:
        return _fits(json.loads(pattern), _APPEND)
    except ValueError:
        return None


def _fits(pattern: Any, found: Any) -> bool | None:
    if isinstance(pattern, dict):
        # All must fit. What is not known is not worse than what does not fit.
        answers = [
            _fits(each, found.get(name) if isinstance(found, dict) else None)
            for name, each in pattern.items()
        ]
        return False if False in answers else None if None in answers else True
    if not isinstance(pattern, list):
        return None
    answers = [_is_one(each, found) for each in pattern]
    return True if True in answers else None if None in answers else False


def _is_one(rule: Any, found: Any) -> bool | None:
    match rule:
        case {"anything-but": list(others)}:
            return found is not None and found not in others
        case {"anything-but": str() | int() | float() as other}:
            return found is not None and found != other
        case {"exists": bool(wanted)}:
            return (found is not None) is wanted
        case {"prefix": str(beginning)}:
            return isinstance(found, str) and found.startswith(beginning)
        case {"numeric": _}:
            # Numbers are text in a stream's records.
            return False
        case dict():
            return None
    return bool(rule == found)


def function_finding(function: Function, topic_arn: str, shards: int) -> Finding:
    """Whether the Lambda publishes to the topic that the nodes listen to."""
    title = "stream Lambda"
    if not function.topic_arn:
        return Finding(
            title,
            "note",
            f"{function.name} has no ROOMCAST_TOPIC_ARN: it is another program, or an older one",
        )
    if function.topic_arn != topic_arn:
        return Finding(
            title,
            "failed",
            f"{function.name} publishes to {function.topic_arn}, and aws.topic_arn is {topic_arn}: "
            "one of both is of another stack",
            "give both the output TopicArn of the same data stack",
        )
    if (function.shards or "1") not in ("1", str(shards)):
        return Finding(
            title,
            "failed",
            f"{function.name} goes by {function.shards} topic shards, and aws.topic_shards is "
            f"{shards}",
            "give both the same number; the Lambda last, or 1 meanwhile",
        )
    return Finding(title, "ok", f"{function.name} publishes to the topic")


# ---- topic, queues and subscriptions


def topic_finding(arn: str, topic: Topic | None) -> Finding:
    """Whether there is the topic."""
    if topic is not None:
        return Finding("set-up of the topic", "ok", arn)
    return Finding(
        "set-up of the topic",
        "failed",
        f"there is no topic {arn}",
        "set aws.topic_arn to the output TopicArn of the data stack",
    )


def consumer_finding(name: str, url: str, queue: Queue | None, region: str) -> Finding:
    """Whether a consumer's queue is there, and gives up on what can never be carried out."""
    title = f"consumer {name}"
    if queue is None:
        told = f"there is no queue {url}"
        return Finding(title, "failed", told, "create it, or mend consumers.aws_sqs.queues")
    if queue.receives_max >= RECEIVES_MIN:
        told = f"{queue.arn}: dead letters after {queue.receives_max} receives"
        return Finding(title, "ok", told)
    told = (
        f"{queue.arn} gives up on a message after {queue.receives_max} receives: an outage of "
        "seconds makes dead letters"
        if queue.receives_max
        else f"{queue.arn} has no dead-letter queue: what can never be carried out comes again "
        "until it expires"
    )
    policy = {"deadLetterTargetArn": f"{queue.arn}-dead", "maxReceiveCount": str(RECEIVES_ADVISED)}
    attributes = json.dumps({"RedrivePolicy": json.dumps(policy)})
    return Finding(
        title,
        "warning",
        told,
        f"aws sqs set-queue-attributes --region {region} --queue-url {url} "
        f"--attributes '{attributes}', with the ARN of a queue for dead letters",
    )


def node_finding(
    lease: Lease,
    queue: Queue | None,
    subscription: Subscription | None,
    topic_arn: str,
    shards: int,
) -> Finding:
    """Whether a node's queue gets what the topic sends, as it is."""
    title = f"queue of {lease.node}"
    again = (
        "have the node make another one: delete this queue, and it does within seconds; or "
        f"roomcast drain {lease.node}"
    )
    if queue is None:
        return Finding(title, "failed", f"there is no queue {lease.queue}", again)
    # First: the policy of such a queue is right, for its own topic.
    if subscription is not None and subscription.topic_arn != topic_arn:
        return Finding(
            title,
            "failed",
            f"is subscribed to {subscription.topic_arn}, and aws.topic_arn is {topic_arn}: the "
            "topic of another stack",
            "give all nodes and `roomcast doctor` the output TopicArn of the same data stack",
        )
    topics = topic_arns(topic_arn, shards)
    missing = [arn for arn in topics if not _lets_in(queue, arn)]
    if missing:
        return Finding(
            title,
            "failed",
            f"its policy does not let {_SNS} send to {queue.arn} for {missing[0]}",
            again,
        )
    if subscription is None or subscription.is_pending:
        return Finding(
            title, "failed", f"{queue.arn} is not subscribed to {topic_arn} (any more)", again
        )
    change = f"aws sns set-subscription-attributes --subscription-arn {subscription.arn}"
    if subscription.endpoint != queue.arn:
        return Finding(
            title, "failed", f"{subscription.arn} goes to {subscription.endpoint}", again
        )
    if _filters(subscription.filter_policy):
        return Finding(
            title,
            "failed",
            f"its subscription has a filter policy, which keeps messages from it: "
            f"{subscription.filter_policy}",
            f"{change} --attribute-name FilterPolicy --attribute-value '{{}}'",
        )
    if not subscription.is_raw:
        return Finding(
            title,
            "failed",
            "raw message delivery is off at its subscription: the node cannot read what SNS puts "
            "around messages",
            f"{change} --attribute-name RawMessageDelivery --attribute-value true",
        )
    return Finding(title, "ok", "subscribed, raw, without a filter, and open to the topic")


def _filters(policy: str) -> bool:
    return policy.strip() not in ("", "{}", "null")


def _lets_in(queue: Queue, topic_arn: str) -> bool:
    """Whether the policy of `queue` lets SNS send to it for the topic."""
    statements = _statements(queue.policy)
    fitting = [
        each
        for each in statements
        if _is_for(each, _SNS)
        and _acts(each, "sqs:SendMessage")
        and _is_about(each, queue.arn)
        and _comes_from(each, topic_arn)
    ]
    return any(each.get("Effect") == "Allow" for each in fitting) and not any(
        each.get("Effect") == "Deny" for each in fitting
    )


def _statements(policy: str) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(policy or "{}").get("Statement", [])
    except (ValueError, AttributeError):
        return []
    return [each for each in _listed(found) if isinstance(each, dict)]


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _is_for(statement: Mapping[str, Any], service: str) -> bool:
    principal = statement.get("Principal")
    if isinstance(principal, dict):
        named = [*_listed(principal.get("Service", [])), *_listed(principal.get("AWS", []))]
        return service in named or "*" in named
    return principal == "*"


def _acts(statement: Mapping[str, Any], action: str) -> bool:
    service, _, name = action.lower().partition(":")
    return any(
        str(each).lower() in ("*", f"{service}:*", f"{service}:{name}")
        or (
            str(each).endswith("*")
            and f"{service}:{name}".startswith(str(each).lower().removesuffix("*"))
        )
        for each in _listed(statement.get("Action", []))
    )


def _is_about(statement: Mapping[str, Any], arn: str) -> bool:
    return any(_matches(str(each), arn) for each in _listed(statement.get("Resource", "*")))


def _comes_from(statement: Mapping[str, Any], topic_arn: str) -> bool:
    """Whether the conditions hold for what the topic sends. Those that are not about the sender
    are taken to hold.
    """
    account = topic_arn.split(":")[4]
    for operator, conditions in (statement.get("Condition") or {}).items():
        for name, values in conditions.items():
            if name.lower() == "aws:sourcearn":
                is_named = any(_matches(str(each), topic_arn) for each in _listed(values))
                if is_named is operator.lower().startswith(("arnnot", "stringnot")):
                    return False
            if name.lower() == "aws:sourceaccount" and account not in _listed(values):
                return False
    return True


def _matches(pattern: str, text: str) -> bool:
    """`*` stands for any text, as in IAM. None of these names has brackets or question marks."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    if not text.startswith(first):
        return False
    at = len(first)
    for part in rest[:-1]:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return text.endswith(rest[-1]) and len(text) - len(rest[-1]) >= at


# ---- keys of KMS


def key_finding(what: str, key: Key, *, sends: bool) -> Finding:
    """Whether a key of KMS that `what` is under can be used. `sends`: SNS sends to it, as to a
    queue, and so must use the key as well.
    """
    title = f"{KEY_FINDING}: {what}"
    if not key.is_enabled:
        return Finding(
            title,
            "failed",
            f"{key.arn} is not enabled: what is under it can be neither read nor written",
            f"aws kms enable-key --key-id {key.arn}; one that is to be deleted: "
            f"aws kms cancel-key-deletion --key-id {key.arn}",
        )
    if not sends:
        return Finding(title, "ok", key.arn)
    if not key.is_customers:
        return Finding(
            title,
            "failed",
            f"{key.arn} is AWS's own, which SNS may not use: no message reaches the queues",
            "leave aws.queue_kms_key_id empty (SQS's own encryption), or give a key of yours whose "
            f"policy lets {_SNS} use it",
        )
    statements = [each for each in _statements(key.policy) if each.get("Effect") == "Allow"]
    lacking = [
        action
        for action in ("kms:GenerateDataKey", "kms:Decrypt")
        if not any(_is_for(each, _SNS) and _acts(each, action) for each in statements)
    ]
    if lacking:
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": _SNS},
            "Action": ["kms:GenerateDataKey*", "kms:Decrypt"],
            "Resource": "*",
        }
        return Finding(
            title,
            "failed",
            f"the policy of {key.arn} does not let {_SNS} do {' and '.join(lacking)}: SNS drops "
            "what it should put into the queues",
            f"add to the key's policy: {json.dumps(statement)}",
        )
    return Finding(title, "ok", f"{key.arn}, which SNS may use")


# ---- clocks, versions, generations and secrets


def clock_finding(here_ms: int, aws_ms: int) -> Finding:
    """The clock of this machine against that of AWS, whose answers tell whole seconds."""
    ahead_ms = here_ms - aws_ms
    if abs(ahead_ms) <= CLOCK_WARNED_MS:
        return Finding("clock", "ok", "agrees with that of AWS")
    told = f"is {abs(ahead_ms) / 1000:.0f} s {'ahead of' if ahead_ms > 0 else 'behind'} AWS's"
    outcome: Final = "failed" if abs(ahead_ms) >= CLOCK_REFUSED_MS else "warning"
    return Finding(
        "clock",
        outcome,
        f"{told}: leases go by clocks, and AWS refuses what is signed five minutes apart",
        "let chrony or systemd-timesyncd set it: chronyc tracking, timedatectl",
    )


def skew_finding(leases: Sequence[Lease]) -> Finding:
    """The clocks of the live nodes, as they found them against those of their queues."""
    wrong = [lease for lease in leases if abs(lease.skew_ms) > CLOCK_WARNED_MS]
    if not wrong:
        return Finding("clocks of nodes", "ok", _nodes(len(leases)))
    worst = max(wrong, key=lambda lease: abs(lease.skew_ms))
    where = f"{worst.node} ({worst.instance})" if worst.instance else worst.node
    return Finding(
        "clocks of nodes",
        "warning",
        f"the clock of {where} is {abs(worst.skew_ms) / 1000:.0f} s "
        f"{'ahead' if worst.skew_ms > 0 else 'behind'}, {_nodes(len(wrong))} in all: others may "
        "take it for dead",
        "look at NTP there: chronyc tracking, timedatectl",
    )


def versions_finding(leases: Iterable[Lease], ours: str) -> Finding:
    """Whether the live nodes are of one release."""
    counted = Counter(lease.version or "without a version" for lease in leases)
    told = ", ".join(f"{_nodes(count)} of {version}" for version, count in sorted(counted.items()))
    if len(counted) > 1:
        return Finding(
            "releases",
            "warning",
            f"{told}: an old release beside a new one",
            "wait for the update to end, or finish it: what is left of the old one shows in "
            "roomcast nodes",
        )
    if counted and ours not in counted:
        return Finding(
            "releases", "note", f"{told}; this is {ours}, which may judge them by other rules"
        )
    return Finding("releases", "ok", told or "no node lives")


def generation_finding(newest: LogItem | None, generation: str, now_ms: int) -> Finding:
    """Whether the nodes that write begin their epochs as this configuration does.

    `newest`: the newest canary, None = there is none.
    """
    title = "log generation"
    if newest is None or now_ms - newest.ts > LATELY_MS:
        return Finding(title, "note", f"{generation!r}; no node has written lately")
    if newest.node.startswith(DOCTOR):
        # Its own configuration is what is in question.
        return Finding(
            title, "note", f"{generation!r}; roomcast doctor wrote last: run it again in a minute"
        )
    theirs = generation_of(newest.epoch)
    if theirs == generation:
        return Finding(title, "ok", f"{generation!r}, as that of {newest.node}")
    return Finding(
        title,
        "failed",
        f"{newest.node} writes in generation {theirs!r}, and aws.log_generation is {generation!r} "
        "here: each would begin all channels anew, again and again",
        "give all nodes the same aws.log_generation: the newest, never one that was used before",
    )


def secret_finding(secrets: Mapping[str, str], *, insecure: bool, bytes_min: int) -> Finding:
    """Whether tokens can be forged. `secrets`: by option; none is told. `bytes_min`: of one that is
    long enough.
    """
    title = "secrets"
    if insecure:
        return Finding(
            title,
            "warning",
            "client.insecure is on: whoever reaches a node may do everything",
            "set client.insecure = false where it is not for development",
        )
    make = 'make one: python3 -c "import secrets; print(secrets.token_urlsafe(48))"'
    for option, found in secrets.items():
        if not found:
            continue
        if found.lower() in _KNOWN_SECRETS:
            return Finding(title, "failed", f"{option} is what everybody tries first", make)
        if len(set(found)) < _VARIETY_MIN:
            return Finding(
                title, "failed", f"{option} has fewer than {_VARIETY_MIN} different signs", make
            )
        if len(found.encode()) < bytes_min:
            return Finding(
                title,
                "warning",
                f"{option} is shorter than {bytes_min} bytes: it may be found by trying",
                make,
            )
    return Finding(title, "ok", "long enough, as far as there are any")


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
