"""Keeps whether somebody is in a channel, as an item a channel that the Lambda alone writes.

    key = "occupancy#<channel>"   member = "state"   occupation = the id of this time
                                                     touched = how often somebody came
                                                     partitions = the keys of entries' partitions

Its appearance is the event `occupied`, its removal `vacated`: so they alternate, however often and
in whichever order records are handled.

Whoever comes is counted first. Then, for all who came or left: where a consistent read of the state
and then of all entries finds nobody, the state is removed, on the condition that nobody was counted
since. Who is counted meanwhile makes the condition fail; whoever counted looks as well. Whoever
enters the table after the entries were read is counted after the removal, and the channel is
occupied anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from botocore.exceptions import ClientError

from roomcast.events.records import OCCUPANCY, Touch
from roomcast.wire.event_kinds import EVENTS_ATTRIBUTE, Mark

__all__ = ["PAGES_MAX", "DynamoStates", "State", "States", "look"]

# Pages of a partition, of 1 MB each: most end at the first entry. A channel whose pages were all
# without one is left for occupied, which the next look may correct.
PAGES_MAX: Final = 100
_ENTRIES_A_PAGE: Final = 50
_STATE: Final = "state"


@dataclass(frozen=True, slots=True)
class State:
    """`occupation`: its id, of this time. `touched`: how often somebody came. `partitions`: where
    entries may be.
    """

    occupation: str
    touched: int
    partitions: tuple[str, ...]


class States(Protocol):
    """The states and the entries, read consistently. Each call may raise the SDK's errors."""

    def count(self, touch: Touch) -> None:
        """Somebody came: make the state, or change `touched`. Keep where the entry is."""

    def read(self, channel: str) -> State | None:
        """The state, if there is one."""

    def has_entries(self, partition: str) -> bool:
        """Whether any client has an entry there."""

    def remove(self, channel: str, state: State) -> None:
        """Remove the state, unless it was touched since, or is gone or another one: that is
        counted from 1 again.
        """


def look(states: States, channel: str) -> None:
    """Remove the state of `channel` if nobody is in it, and nobody came meanwhile."""
    state = states.read(channel)
    if state is not None and not any(map(states.has_entries, state.partitions)):
        states.remove(channel, state)


class DynamoStates:
    """The States in the presence table. `client`: boto3's for DynamoDB. `new_id`: gives random
    ids.
    """

    def __init__(self, client: Any, table: str, new_id: Callable[[], str]) -> None:
        self._client = client
        self._table = table
        self._new_id = new_id

    def count(self, touch: Touch) -> None:
        self._client.update_item(
            TableName=self._table,
            Key=_key(touch.channel),
            UpdateExpression=(
                "ADD #touched :one, #partitions :partition "
                "SET #occupation = if_not_exists(#occupation, :new), #events = :events"
            ),
            ExpressionAttributeNames={
                "#touched": "touched",
                "#partitions": "partitions",
                "#occupation": "occupation",
                "#events": EVENTS_ATTRIBUTE,
            },
            ExpressionAttributeValues={
                ":one": {"N": "1"},
                ":partition": {"SS": [touch.partition]},
                ":new": {"S": self._new_id()},
                ":events": {"S": Mark(touch.kinds).text()},
            },
        )

    def read(self, channel: str) -> State | None:
        item = self._client.get_item(
            TableName=self._table, Key=_key(channel), ConsistentRead=True
        ).get("Item")
        if item is None:
            return None
        return State(
            item["occupation"]["S"], int(item["touched"]["N"]), tuple(item["partitions"]["SS"])
        )

    def has_entries(self, partition: str) -> bool:
        start: dict[str, Any] = {}
        for _ in range(PAGES_MAX):
            answer = self._client.query(
                TableName=self._table,
                KeyConditionExpression="#key = :key",
                FilterExpression="attribute_exists(#info)",
                ProjectionExpression="#member",
                ExpressionAttributeNames={"#key": "key", "#info": "info", "#member": "member"},
                ExpressionAttributeValues={":key": {"S": partition}},
                ConsistentRead=True,
                Limit=_ENTRIES_A_PAGE,
                **start,
            )
            if answer["Items"]:
                return True
            if "LastEvaluatedKey" not in answer:
                return False
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        return True

    def remove(self, channel: str, state: State) -> None:
        try:
            self._client.delete_item(
                TableName=self._table,
                Key=_key(channel),
                ConditionExpression="#touched = :touched AND #occupation = :occupation",
                ExpressionAttributeNames={"#touched": "touched", "#occupation": "occupation"},
                ExpressionAttributeValues={
                    ":touched": {"N": str(state.touched)},
                    ":occupation": {"S": state.occupation},
                },
            )
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "ConditionalCheckFailedException":
                raise


def _key(channel: str) -> dict[str, Any]:
    return {"key": {"S": f"{OCCUPANCY}#{channel}"}, "member": {"S": _STATE}}
