"""The stream Lambda: what is published for an event,
and what it reports when SNS does not take it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import orjson
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, EndpointConnectionError
from hypothesis import given
from hypothesis import strategies as st

from roomcast.aws import errors
from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX, parse, record_text
from roomcast.delivery.shards import SHARDS_MAX, homes, shard_of, topic_of
from roomcast.log.item import LogItem, parse_log_item
from roomcast.stream_batch import AWS_DOMAINS, CALL_S_MAX, NotOfAws
from roomcast.wire.publication import Record
from stream_lambda import handler as module
from stream_lambda.handler import (
    BATCH_BYTES_MAX,
    BATCH_ENTRIES_MAX,
    RECORD_BYTES_MAX,
    Entry,
    calls,
    handler,
    plan,
    publish,
    publish_all,
)
from tests.emf import Read, read
from tests.unit.aws.fakes import answer_all, client_error

EVENTS: Final = Path(__file__).parents[2] / "events"
TOPIC: Final = "arn:aws:sns:us-east-1:123456789012:roomcast-topic"
FIRST_SEQUENCE: Final = 99_999_999_999_999_999_995


class FakeSns:
    """Takes PublishBatch as AWS does, checks its bounds, and fails where it is told to."""

    def __init__(
        self,
        *,
        reject: Sequence[int] = (),
        forget: Sequence[int] = (),
        raises: Mapping[int, Exception] | None = None,
    ) -> None:
        """`reject` and `forget`: numbers of entries, counted over all calls;
        `raises`: by number of call.
        """
        self.bodies: list[str] = []
        self.topics: list[str] = []
        self.calls = 0
        self._entries = 0
        self._reject = reject
        self._forget = forget
        self._raises = raises or {}

    def publish_batch(self, **request: Any) -> dict[str, Any]:
        assert request["TopicArn"].startswith(TOPIC)
        entries = request["PublishBatchRequestEntries"]
        assert 1 <= len(entries) <= BATCH_ENTRIES_MAX
        assert len({entry["Id"] for entry in entries}) == len(entries)
        assert sum(len(entry["Message"].encode()) for entry in entries) <= BATCH_BYTES_MAX
        self.calls += 1
        self.topics.append(request["TopicArn"])
        if error := self._raises.get(self.calls):
            raise error
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        for entry in entries:
            number, self._entries = self._entries, self._entries + 1
            if number in self._reject:
                answer["Failed"].append(
                    {"Id": entry["Id"], "Code": "InternalError", "SenderFault": False}
                )
            elif number not in self._forget:
                self.bodies.append(entry["Message"])
                answer["Successful"].append({"Id": entry["Id"], "MessageId": str(number)})
        return answer

    def records(self) -> list[Record]:
        envelopes = [parse(body) for body in self.bodies]
        assert not any(envelope.broken for envelope in envelopes)
        return [record for envelope in envelopes for record in envelope.records]


@pytest.fixture
def sns(monkeypatch: pytest.MonkeyPatch) -> FakeSns:
    fake = FakeSns()
    use(monkeypatch, fake)
    return fake


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeSns) -> None:
    monkeypatch.setenv("ROOMCAST_TOPIC_ARN", TOPIC)
    monkeypatch.setattr(module, "_sns", lambda: fake)


def recorded(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))


def append(
    offset: int, text: str = "hi", *, channel: str = "chat", epoch: str = "e", count: int = 1
) -> Any:
    """A stream record of an append whose sequence number is as high as `offset` says."""
    item = LogItem(
        channel=channel,
        offset=offset,
        last=offset + count - 1,
        epoch=epoch,
        pubs=json.dumps([{"data": text}] * count, ensure_ascii=False),
        batch="b",
        node="n",
        ts=1,
        expires_at=2,
    )
    return {
        "eventName": "INSERT",
        "dynamodb": {
            "Keys": {"channel": {"S": channel}, "offset": {"N": str(offset)}},
            "NewImage": item.attributes(),
            "SequenceNumber": str(FIRST_SEQUENCE + offset),
        },
    }


def event(*records: Any) -> dict[str, Any]:
    return {"Records": list(records)}


def failure(sequence: int) -> dict[str, Any]:
    return {"batchItemFailures": [{"itemIdentifier": str(sequence)}]}


DONE: Final[dict[str, Any]] = {"batchItemFailures": []}


def test_appends_travel_in_one_message(sns: FakeSns, capsys: pytest.CaptureFixture[str]) -> None:
    assert handler(recorded("stream_appends"), None) == DONE
    assert len(sns.bodies) == 1
    assert [(record.channel, record.offset, record.last) for record in sns.records()] == [
        ("chat:lobby", 1, 1),
        ("chat:lobby", 2, 4),
        ("news", 1, 1),
    ]
    lobby, more, news = sns.records()
    assert lobby.publications is not None
    assert lobby.publications[0].data == {"text": "hi"}
    assert more.publications is not None
    assert [publication.offset for publication in more.publications] == [2, 3, 4]
    assert news.publications is not None
    assert news.publications[0].info is not None
    assert news.publications[0].info.user == "ann"
    assert capsys.readouterr().out == ""  # what is in order costs no log line


def test_heads_changes_and_ttl_deletes_are_not_published(
    sns: FakeSns, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {**append(1), "eventName": "MODIFY"}
    assert handler(event(*recorded("stream_not_appends")["Records"], changed), None) == DONE
    assert sns.calls == 0
    assert capsys.readouterr().out == ""  # and they are no poison


def test_poison_is_skipped_and_told_without_payload(
    sns: FakeSns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "chat-StreamLambda")
    assert handler(recorded("stream_poison"), None) == DONE
    assert [record.offset for record in sns.records()] == [9]
    out = capsys.readouterr().out
    line = json.loads(out)
    assert out.count("\n") == 1
    assert line["event"] == "stream_batch_incomplete"
    assert line["records_skipped"] == sum(line["skipped"].values()) == 9
    # Without the dimension, another deployment's would set off this one's alarm.
    assert list(read(out)) == [
        Read("roomcast", "records_skipped", (9,), "Count", (("FunctionName", "chat-StreamLambda"),))
    ]
    assert "lobby" not in out
    assert "survives" not in out


@pytest.mark.parametrize(
    "poison", [None, 7, [], {}, {"eventName": "INSERT", "dynamodb": {"Keys": 3}}]
)
def test_a_record_of_any_shape_holds_up_nobody(sns: FakeSns, poison: object) -> None:
    assert handler(event(poison, append(1)), None) == DONE
    assert len(sns.records()) == 1


def test_an_event_without_records_is_done(sns: FakeSns) -> None:
    assert handler({}, None) == DONE


def test_a_record_that_does_not_fit_travels_as_a_pointer(
    sns: FakeSns, capsys: pytest.CaptureFixture[str]
) -> None:
    # Non-characters need six bytes each on the wire, three in the table.
    assert handler(event(append(1, "\uffff" * 45_000), append(2)), None) == DONE
    pointer, whole = sns.records()
    assert (pointer.channel, pointer.epoch, pointer.offset, pointer.last) == ("chat", "e", 1, 1)
    assert pointer.publications is None
    assert whole.publications is not None
    assert json.loads(capsys.readouterr().out)["records_as_pointers"] == 1


def test_the_largest_record_fits_and_one_byte_more_is_a_pointer() -> None:
    empty = len(plan(event(append(1, ""))).entries[0].body.encode())
    envelope = len('{"v":1,"records":[]}')
    room = RECORD_BYTES_MAX - (empty - envelope)
    exact, over = plan(event(append(1, "x" * room))), plan(event(append(1, "x" * (room + 1))))
    assert exact.pointers == 0
    assert RECORD_BYTES_MAX <= exact.entries[0].body_bytes <= ENVELOPE_BYTES_MAX
    assert over.pointers == 1


def test_a_pointer_that_does_not_fit_is_poison() -> None:
    planned = plan(event(append(1, "x" * 1000, epoch="e" * RECORD_BYTES_MAX)))
    assert planned.entries == ()
    assert planned.skipped == {"MalformedItem": 1}


@pytest.mark.parametrize("name", ["channel", "epoch"])
def test_a_name_that_no_decoder_takes_costs_no_other_record(name: str) -> None:
    strange: Any = append(1)
    strange["dynamodb"]["NewImage"][name] = {"S": "\ud800"}
    planned = plan(event(strange, append(2)))
    assert planned.skipped == {"UnicodeEncodeError": 1}
    [entry] = planned.entries
    assert [record.offset for record in parse(entry.body, orjson.loads).records] == [2]


def test_a_rejected_entry_is_reported_by_its_lowest_sequence_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    big = "x" * 100_000
    records = [
        append(offset, big) for offset in range(1, 7)
    ]  # two in a message, one message in a call
    fake = FakeSns(reject=[1])
    use(monkeypatch, fake)
    assert handler(event(*records), None) == failure(FIRST_SEQUENCE + 3)
    assert [record.offset for record in fake.records()] == [1, 2]
    assert fake.calls == 2  # what comes after is sent again anyway


def test_an_entry_missing_in_the_answer_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, FakeSns(forget=[0]))
    assert handler(event(append(1), append(2)), None) == failure(FIRST_SEQUENCE + 1)
    line = json.loads(capsys.readouterr().out)
    assert line["messages_failed"] == 1
    assert line["reason"] == "missing in the answer"


def test_both_failures_in_one_call_report_the_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("b", 1, str(sequence)) for sequence in (5, 6, 7)]
    outcome = publish(FakeSns(reject=[2], forget=[1]), TOPIC, entries)
    assert outcome.published == 1
    assert [entry.sequence for entry in outcome.failed] == ["6", "7"]


def test_what_was_not_sent_any_more_failed_too() -> None:
    entries = [Entry("b", ENVELOPE_BYTES_MAX, str(sequence)) for sequence in (5, 6, 7)]
    outcome = publish(FakeSns(reject=[1]), TOPIC, entries)
    assert [entry.sequence for entry in outcome.failed] == ["6", "7"]


class SlowSns(FakeSns):
    """Each call takes its time, and then succeeds. As a context, it is ended at `within_s`."""

    def __init__(self, call_s: float, within_s: float) -> None:
        super().__init__()
        self._call_s = call_s
        self.left_s = within_s

    def publish_batch(self, **request: Any) -> dict[str, Any]:
        self.left_s -= self._call_s
        assert self.left_s >= 0, "the function is ended, and everything is sent again"
        return super().publish_batch(**request)

    def get_remaining_time_in_millis(self) -> int:
        return round(self.left_s * 1000)


@pytest.mark.parametrize("call_s", [0.05, 3.0, CALL_S_MAX])
def test_what_there_is_no_time_for_is_left_to_the_next_run(
    call_s: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A function that is ended half-way has sent nothing, as its mapping sees it."""
    left = [append(offset, "x" * 200_000) for offset in range(1, 31)]
    for _ in range(len(left)):
        fake = SlowSns(call_s, within_s=60)
        use(monkeypatch, fake)
        response = handler(event(*left), fake)
        sent = len(fake.records())
        assert sent >= 1
        left = left[sent:]
        if not left:
            break
        first = int(left[0]["dynamodb"]["SequenceNumber"])
        assert response == failure(first)
        assert json.loads(capsys.readouterr().out)["reason"] == "no time left"
    assert (left, response) == ([], DONE)


def test_a_call_has_time_for_all_of_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    config = module._sns.__wrapped__().meta.config
    attempts = config.retries["total_max_attempts"]
    # In the SDK's standard mode a pause is at most as long as 2 to the number of retries before.
    pauses_s = sum(2**retry for retry in range(attempts - 1))
    assert attempts * (config.connect_timeout + config.read_timeout) + pauses_s < CALL_S_MAX


def test_sequence_numbers_are_compared_as_numbers_and_reported_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As text, the sequence of offset 5 (a digit longer) comes first; emulators pad with zeros.
    earlier, later = append(4), append(5)
    earlier["dynamodb"]["SequenceNumber"] = "000" + earlier["dynamodb"]["SequenceNumber"]
    assert len(str(FIRST_SEQUENCE + 5)) > len(str(FIRST_SEQUENCE + 4))
    use(monkeypatch, FakeSns(forget=[0]))
    response = handler(event(later, earlier), None)
    assert response["batchItemFailures"] == [{"itemIdentifier": f"000{FIRST_SEQUENCE + 4}"}]


@pytest.mark.parametrize(
    "error",
    [
        ClientError(
            {"Error": {"Code": "Throttled", "Message": "the request: secret"}}, "PublishBatch"
        ),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
    ],
)
def test_sns_out_of_reach_raises_while_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    use(monkeypatch, FakeSns(raises={1: error}))
    with pytest.raises(type(error)):
        handler(event(append(1)), None)


def test_sns_lost_on_the_way_is_a_partial_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ClientError(
        {"Error": {"Code": "Throttled", "Message": "the request: secret"}}, "PublishBatch"
    )
    fake = FakeSns(raises={2: error})
    use(monkeypatch, fake)
    assert handler(event(*(append(n, "x" * 200_000) for n in (1, 2, 3))), None) == failure(
        FIRST_SEQUENCE + 2
    )
    assert [record.offset for record in fake.records()] == [1]
    out = capsys.readouterr().out
    assert json.loads(out)["reason"] == "Throttled"
    assert "secret" not in out


def test_poison_is_told_also_when_sns_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(
        monkeypatch, FakeSns(raises={1: EndpointConnectionError(endpoint_url="http://127.0.0.1:1")})
    )
    with pytest.raises(EndpointConnectionError):
        handler(event(append(1), 7), None)
    assert json.loads(capsys.readouterr().out)["records_skipped"] == 1


@given(st.lists(st.one_of(st.integers(1, 50_000), st.integers(1, ENVELOPE_BYTES_MAX)), max_size=60))
def test_calls_keep_both_bounds_and_the_order(sizes: list[int]) -> None:
    entries = [Entry("", size, str(index)) for index, size in enumerate(sizes)]
    batches = list(calls(entries))
    assert [entry for batch in batches for entry in batch] == entries
    for batch in batches:
        assert 1 <= len(batch) <= BATCH_ENTRIES_MAX
        assert sum(entry.body_bytes for entry in batch) <= BATCH_BYTES_MAX
    for batch, following in itertools.pairwise(batches):
        full = len(batch) == BATCH_ENTRIES_MAX
        assert full or sum(entry.body_bytes for entry in (*batch, following[0])) > BATCH_BYTES_MAX


# ---- who answers

ANSWER: Final = (
    '<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishBatchResult>'
    "<Successful><member><Id>0</Id><MessageId>m</MessageId></member></Successful>"
    "</PublishBatchResult>{}</PublishBatchResponse>"
)
FORGED: Final = ANSWER.format("")
TRUE: Final = ANSWER.format("<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>")


@pytest.fixture
def real_sns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Makes the client that the Lambda makes. Nothing is sent once its answers are given."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("ROOMCAST_TOPIC_ARN", TOPIC)
    module._sns.cache_clear()
    yield module._sns
    module._sns.cache_clear()


@pytest.mark.parametrize(
    "body", ["", "{}", "OK", "<html>Welcome</html>", "<!DOCTYPE html><html><br></html>", FORGED]
)
def test_a_success_that_aws_did_not_answer_is_none(body: str, real_sns: Callable[[], Any]) -> None:
    """Whoever stands between answers 200: the records come again."""
    answer_all(real_sns(), body)
    with pytest.raises(Exception) as raised:  # noqa: PT011  # whatever it is
        handler(event(append(1)), None)
    assert body != FORGED or raised.type is NotOfAws


def test_what_aws_took_before_is_not_sent_again(real_sns: Callable[[], Any]) -> None:
    entries = [Entry("x" * 200_000, 200_000, str(number)) for number in range(3)]
    bodies = iter([TRUE, FORGED])
    client = real_sns()

    def answer(request: Any, **_: Any) -> Any:
        raw = SimpleNamespace(stream=lambda: [next(bodies).encode()])
        return AWSResponse(request.url, 200, {}, raw)

    client.meta.events.register("before-send", answer)
    outcome = publish(client, TOPIC, entries)
    assert (outcome.published, outcome.failed) == (1, tuple(entries[1:]))
    assert outcome.reason == "NotOfAws"


def test_aws_answers_with_an_id_and_an_emulator_need_not(
    real_sns: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_all(real_sns(), TRUE)
    assert handler(event(append(1)), None) == {"batchItemFailures": []}
    module._sns.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", "http://127.0.0.1:1")
    answer_all(real_sns(), FORGED)
    assert handler(event(append(1)), None) == {"batchItemFailures": []}


def test_an_error_stays_what_it_is(real_sns: Callable[[], Any]) -> None:
    answer_all(real_sns(), "<html>Not allowed</html>", 403)
    with pytest.raises(ClientError):
        handler(event(append(1)), None)


def test_the_domains_of_aws_are_the_same_for_all() -> None:
    assert AWS_DOMAINS == errors.AWS_DOMAINS


TEXTS: Final = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from([0, 1_000, 60_000, 130_000, 300_000]).map(lambda size: "x" * size),
)
POISON: Final = st.sampled_from([None, {}, recorded("stream_poison")["Records"][1]])


@given(
    texts=st.lists(st.one_of(TEXTS, POISON.map(lambda poison: (poison,))), max_size=12),
    reject=st.sets(st.integers(0, 6), max_size=2),
    forget=st.sets(st.integers(0, 6), max_size=2),
    raising=st.none() | st.integers(1, 4),
)
def test_every_valid_record_is_published_once_or_covered_by_the_report(
    texts: list[Any], reject: set[int], forget: set[int], raising: int | None
) -> None:
    """I2, I3: whatever SNS does, an append is in exactly one accepted message
    or will be sent again.
    """
    records = [
        text[0] if isinstance(text, tuple) else append(index + 1, text)
        for index, text in enumerate(texts)
    ]
    valid = {index + 1 for index, text in enumerate(texts) if not isinstance(text, tuple)}
    error = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
    fake = FakeSns(
        reject=sorted(reject), forget=sorted(forget), raises={raising: error} if raising else None
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, fake)
        try:
            response = handler(event(*records), None)
        except EndpointConnectionError:
            assert fake.bodies == []
            return
    offsets = [record.offset for record in fake.records()]
    assert len(set(offsets)) == len(offsets)
    failures = response["batchItemFailures"]
    assert len(failures) <= 1
    again = {
        offset
        for offset in valid
        if failures and FIRST_SEQUENCE + offset >= int(failures[0]["itemIdentifier"])
    }
    assert set(offsets) | again == valid
    if failures:
        assert int(failures[0]["itemIdentifier"]) - FIRST_SEQUENCE in valid - set(offsets)


# ---- topic shards


class ShardedSns:
    """Keeps what each topic took; some topics fail."""

    def __init__(self, *failing: str, error: Exception | None = None) -> None:
        self.taken: dict[str, list[str]] = {}
        self._failing = failing
        self._error = error or EndpointConnectionError(endpoint_url="http://127.0.0.1:1")

    def publish_batch(self, **request: Any) -> dict[str, Any]:
        topic = request["TopicArn"]
        if topic in self._failing:
            raise self._error
        entries = request["PublishBatchRequestEntries"]
        self.taken.setdefault(topic, []).extend(entry["Message"] for entry in entries)
        return {"Successful": [{"Id": entry["Id"]} for entry in entries], "Failed": []}


CHANNEL_NAMES: Final = tuple(f"room:{number}" for number in range(40))


@pytest.mark.parametrize("shards", [1, 2, SHARDS_MAX])
def test_each_record_goes_to_the_topic_of_its_channel(
    shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ShardedSns()
    monkeypatch.setattr(module, "_sns", lambda: fake)
    monkeypatch.setenv("ROOMCAST_TOPIC_ARN", TOPIC)
    monkeypatch.setenv("ROOMCAST_TOPIC_SHARDS", str(shards))
    names = (*CHANNEL_NAMES, CANARY_CHANNEL)
    records = [append(number, channel=name) for number, name in enumerate(names, 1)]
    assert handler(event(*records), None) == {"batchItemFailures": []}
    found: dict[str, list[str]] = {}
    for topic, bodies in fake.taken.items():
        assert len(bodies) == 1, "packed for each topic"
        envelope = parse(bodies[0])
        assert not envelope.broken
        assert envelope.shards == shards
        assert topic == topic_of(TOPIC, envelope.shard)
        found[topic] = [record.channel for record in envelope.records]
    expected: dict[str, list[str]] = {}
    for name in names:
        for home in homes(name, shards):
            expected.setdefault(topic_of(TOPIC, home), []).append(name)
    assert found == expected
    if shards > 1:
        assert found[TOPIC] == [CANARY_CHANNEL]


def test_without_topic_shards_messages_are_as_they_were() -> None:
    records = event(append(1), append(2, channel=CANARY_CHANNEL))
    assert [entry.body for entry in plan(records, at=5).entries] == [
        entry.body for entry in plan(records, at=5, shards=1).entries
    ]
    assert "shard" not in plan(records, at=5).entries[0].body


def test_a_topic_that_fails_is_sent_to_again_and_the_others_went_out() -> None:
    failing = topic_of(TOPIC, shard_of("b", 16))
    fake = ShardedSns(failing)
    entries = plan(event(append(1, channel="a"), append(2, channel="b")), shards=16).entries
    outcome = publish_all(fake, TOPIC, entries)
    assert outcome.published == 1
    assert [entry.sequence for entry in outcome.failed] == [str(FIRST_SEQUENCE + 2)]
    assert outcome.reason == "EndpointConnectionError"
    assert topic_of(TOPIC, shard_of("a", 16)) in fake.taken


def test_when_all_topics_fail_the_error_is_raised() -> None:
    entries = plan(event(append(1, channel="a"), append(2, channel="b")), shards=16).entries
    fake = ShardedSns(*(topic_of(TOPIC, shard) for shard in range(16)))
    with pytest.raises(EndpointConnectionError):
        publish_all(fake, TOPIC, entries)


@pytest.mark.parametrize("code", ["NotFound", "AuthorizationError"])
def test_a_topic_shard_that_refuses_holds_up_no_other(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its records would come again for an hour, and all that follow them would wait."""
    refusing = topic_of(TOPIC, shard_of("b", 16))
    fake = ShardedSns(refusing, error=client_error(code, 404, "PublishBatch"))
    monkeypatch.setattr(module, "_sns", lambda: fake)
    monkeypatch.setenv("ROOMCAST_TOPIC_ARN", TOPIC)
    monkeypatch.setenv("ROOMCAST_TOPIC_SHARDS", "16")
    canary = append(3, channel=CANARY_CHANNEL)
    done: dict[str, list[dict[str, str]]] = {"batchItemFailures": []}
    together = event(append(1, channel="a"), append(2, channel="b"), canary)
    assert handler(together, None) == done
    line = json.loads(capsys.readouterr().out)
    assert (line["event"], line["messages_failed"]) == ("stream_batch_incomplete", 1)
    assert (line["messages_published"], line["reason"]) == (16, code)
    assert TOPIC in fake.taken
    assert handler(event(append(1, channel="b")), None) == done, "also if there is nothing else"


def test_the_base_topic_that_refuses_is_sent_to_again() -> None:
    """Nobody hears anything then. What waits goes out when it is mended."""
    entries = plan(event(append(1, channel=CANARY_CHANNEL)), shards=2).entries
    fake = ShardedSns(TOPIC, error=client_error("AuthorizationError", 403, "PublishBatch"))
    outcome = publish_all(fake, TOPIC, entries)
    assert (outcome.published, [entry.shard for entry in outcome.failed]) == (2, [None])


def test_the_largest_record_fits_an_envelope_of_the_last_topic_shard() -> None:
    longest = "x" * (RECORD_BYTES_MAX - 200)
    name = next(name for name in CHANNEL_NAMES if shard_of(name, 16) == 15)
    planned = plan(event(append(1, longest, channel=name)), at=1_700_000_000_000, shards=16)
    assert planned.entries[0].body_bytes <= ENVELOPE_BYTES_MAX


@pytest.mark.parametrize("shards", ["0", "17", "four", ""])
def test_a_number_of_topic_shards_that_is_none_publishes_nothing(
    shards: str, sns: FakeSns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records come again, and the function's errors are counted."""
    monkeypatch.setenv("ROOMCAST_TOPIC_SHARDS", shards)
    with pytest.raises(ValueError, match=r"ROOMCAST_TOPIC_SHARDS|invalid literal"):
        handler(event(append(1)), None)
    assert sns.topics == []


def test_a_trace_goes_along_and_one_that_is_none_does_not() -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    traced, forged, plain = append(1), append(2), append(3)
    traced["dynamodb"]["NewImage"]["trace"] = {"S": trace}
    forged["dynamodb"]["NewImage"]["trace"] = {"S": "x" * 200_000}
    [entry] = plan(event(traced, forged, plain), at=5).entries
    trails = [record.trail for record in parse(entry.body).records]
    assert trails[1:] == [None, None]
    assert trails[0] is not None
    assert (trails[0].context.traceparent(), trails[0].lambda_at) == (trace, 5)


def test_the_room_of_a_trace_counts_and_a_pointer_has_none() -> None:
    """What just fits a message without a trace is a pointer with one."""
    trace = {"S": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    head = len(record_text(parse_log_item(append(1, "")["dynamodb"]["NewImage"]), "[]"))
    fits = append(1, "x" * (RECORD_BYTES_MAX - head - len('{"data":""}')))
    planned = plan(event(fits))
    assert planned.pointers == 0
    fits["dynamodb"]["NewImage"]["trace"] = trace
    planned = plan(event(fits))
    assert planned.pointers == 1
    assert "trace" not in planned.entries[0].body
