"""The options of consumers: back ends that publish through queues of SQS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from roomcast.config.declaration import declare, declared

__all__ = [
    "AWS_SQS",
    "CONSUMERS",
    "CONSUMERS_MAX",
    "CONSUMERS_VARIABLE",
    "CONSUMER_OPTIONS",
    "CONSUMER_TABLES",
    "PUBLICATION_DATA_MODE",
    "QUEUES_MAX",
    "AwsSqsConfig",
    "ConsumerConfig",
    "PublicationDataModeConfig",
]

CONSUMERS: Final = "consumers"
# The same tables as a JSON array.
CONSUMERS_VARIABLE: Final = "ROOMCAST_CONSUMERS"
# Queues of all consumers together. Each has a long poll open, on a connection of its own.
CONSUMERS_MAX: Final = 16
QUEUES_MAX: Final = 16
# The limits of SQS on a receive, a long poll and a visibility time-out.
_RECEIVE_MAX: Final = 10
_WAIT_S_MAX: Final = 20
_VISIBILITY_S_MAX: Final = 12 * 3600


def _attribute(default: str, doc: str) -> str:
    return declare(
        default,
        doc,
        # What SQS takes.
        pattern=r"[A-Za-z0-9_.-]{0,256}",
        shape="up to 256 letters, digits, -, _ or .",
    )


@dataclass(frozen=True, slots=True)
class PublicationDataModeConfig:
    """[consumers.aws_sqs.publication_data_mode]: bodies that are what is published."""

    enabled: bool = declare(
        False,
        "A message's body is the data of a publication, and its attributes say the rest. Otherwise "
        "it is a command of the server API.",
    )
    channels_attribute: str = _attribute(
        "centrifugo-channels", "Attribute with the channels, between commas."
    )
    idempotency_key_attribute: str = _attribute(
        "centrifugo-idempotency-key",
        "Attribute with an idempotency key, in place of the message's id; empty: none is read.",
    )
    delta_attribute: str = _attribute(
        "centrifugo-delta",
        "Attribute that says whether the publication may go out as a difference: `true` or "
        "`false`; empty: none is read.",
    )
    version_attribute: str = _attribute(
        "centrifugo-version", "Attribute with `version`; empty: none is read."
    )
    version_epoch_attribute: str = _attribute(
        "centrifugo-version-epoch", "Attribute with `version_epoch`; empty: none is read."
    )
    tags_attribute_prefix: str = _attribute(
        "centrifugo-tag-",
        "Attributes that begin so are tags, named by what follows; empty: none are read.",
    )


@dataclass(frozen=True, slots=True)
class AwsSqsConfig:
    """[consumers.aws_sqs]: where the messages come from, and what they are."""

    queues: tuple[str, ...] = declare(
        (),
        "URLs of the queues, 16 of all consumers together. Every node receives from each.",
        # No user:password@, because the address is logged.
        pattern=r"https?://[^/\s@?#]+/[0-9]{1,12}/[A-Za-z0-9_-]{1,80}(\.fifo)?",
        shape="URLs such as https://sqs.eu-central-1.amazonaws.com/123456789012/orders",
    )
    region: str = declare(
        "",
        "Region of the queues; empty: that of the node.",
        pattern=r"[a-z]{2}(-[a-z]+)+-[0-9]",
        shape="a region such as eu-central-1",
    )
    sns_envelope: bool = declare(
        False,
        "The queues are subscribed to topics of SNS without raw delivery: what is meant is in the "
        "notification's `Message`, and its attributes in `MessageAttributes`.",
    )
    max_number_of_messages: int = declare(
        10,
        "Messages of one receive, and so the most that a node works on at once for each queue.",
        unit="messages",
        within=(1, _RECEIVE_MAX),
    )
    wait_time_time_s: int = declare(
        20,
        "How long a receive waits for messages. The name is Centrifugo's.",
        within=(1, _WAIT_S_MAX),
        says_unit=True,
    )
    visibility_timeout_s: int = declare(
        30,
        "For how long a received message is hidden from the other nodes. What is not begun by then "
        "is left to them.",
        within=(5, _VISIBILITY_S_MAX),
        says_unit=True,
    )
    max_concurrency: int = declare(
        10,
        "Messages of one receive that are worked on at once; of a FIFO queue one of each group. "
        "Centrifugo has 1. Publications that go into one channel together share an append.",
        unit="messages",
        within=(1, _RECEIVE_MAX),
    )
    method_attribute: str = _attribute(
        "centrifugo-method",
        "Attribute that names the command's method: the body then is its parameters. Without it, "
        'the body is `{"method": …, "payload": …}`.',
    )
    publication_data_mode: PublicationDataModeConfig = field(
        default_factory=PublicationDataModeConfig
    )


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """[[consumers]]: one of them. See docs/consumers.md."""

    name: str = declare(
        "",
        "Required, and different from the others': in logs and metrics.",
        pattern=r"[A-Za-z0-9_]{2,64}",
        shape="2 to 64 letters, digits or _",
    )
    enabled: bool = declare(False, "Whether nodes receive from its queues.")
    type: str = declare("", "Required: `aws_sqs`.", pattern="aws_sqs", shape="`aws_sqs`")
    aws_sqs: AwsSqsConfig = field(default_factory=AwsSqsConfig)


AWS_SQS: Final = f"{CONSUMERS}.aws_sqs"
PUBLICATION_DATA_MODE: Final = f"{AWS_SQS}.publication_data_mode"
# Only in a file, or all of them in CONSUMERS_VARIABLE.
CONSUMER_OPTIONS: Final = (
    *declared(CONSUMERS, ConsumerConfig),
    *declared(AWS_SQS, AwsSqsConfig),
    *declared(PUBLICATION_DATA_MODE, PublicationDataModeConfig),
)
CONSUMER_TABLES: Final = frozenset({AWS_SQS, PUBLICATION_DATA_MODE})
