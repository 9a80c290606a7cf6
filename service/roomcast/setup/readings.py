"""What was read of a deployment's set-up, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Function", "Queue", "StreamMapping", "Subscription", "Table", "Topic"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table. `view`: what its stream shows, "" = the stream is off. `expires_by`: the attribute
    by which rows expire, "" = they do not. `key`: of KMS, "" = DynamoDB's own. `answered_ms`: the
    clock of AWS at the answer, 0 = it did not say.
    """

    arn: str
    view: str = ""
    stream_arn: str = ""
    expires_by: str = ""
    key: str = ""
    answered_ms: int = 0


@dataclass(frozen=True, slots=True)
class StreamMapping:
    """An event source mapping of a stream. `state`: as Lambda calls it. `why`: of the state, and of
    the last batch. `filters`: JSON texts; none = every record passes.
    """

    uuid: str
    function: str
    state: str
    why: str
    result: str
    filters: Sequence[str]
    reports_items: bool


@dataclass(frozen=True, slots=True)
class Function:
    """The stream Lambda. `topic_arn`, `shards`: of its environment, "" = it has none."""

    name: str
    topic_arn: str
    shards: str


@dataclass(frozen=True, slots=True)
class Topic:
    """`key`: of KMS, "" = it is not encrypted."""

    arn: str
    key: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription of a topic. `filter_policy`: JSON text, "" = none."""

    arn: str
    topic_arn: str
    endpoint: str
    is_raw: bool
    filter_policy: str
    is_pending: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue. `policy`: JSON text, "" = none. `key`: of KMS, "" = SQS's own. `receives_max`: how
    often a message is received before it is a dead letter, 0 = there are none.
    """

    arn: str
    policy: str
    key: str
    receives_max: int = 0
