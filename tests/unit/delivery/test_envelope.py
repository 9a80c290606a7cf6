"""service/roomcast/delivery/envelope.py: what is packed is what is parsed,
within the bounds, whoever wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roomcast.delivery.envelope import (
    ENVELOPE_BYTES_MAX,
    EPOCH_CHARS_MAX,
    Envelope,
    MalformedEnvelope,
    Signal,
    checked_pubs,
    express_text,
    pack,
    parse,
    record_text,
    signal_text,
)
from roomcast.delivery.shards import SHARDS_MAX
from roomcast.log.item import LogItem
from roomcast.wire.encoding import stored_of
from roomcast.wire.publication import (
    TIME_MAX,
    ClientInfo,
    MalformedPublication,
    Publication,
    Record,
)
from roomcast.wire.shapes import DEPTH_MAX
from roomcast.wire.trace_context import BY_EXPRESS, BY_SIGNAL, BY_STREAM, TraceContext, Trail

DECODERS = pytest.mark.parametrize("loads", [json.loads, orjson.loads], ids=["stdlib", "orjson"])
Loads = Callable[[str], Any]

WEIRD = st.sampled_from(
    ["\ufffe", "\uffff", "\n", "\r\n", "\u2028", "\x00", "\x7f", '"', "\\", "😀", "\\uffff"]
)
TEXT = st.text(max_size=6) | WEIRD
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
INFOS = st.builds(
    ClientInfo, TEXT, TEXT, st.none() | JSON.filter(lambda value: value is not None), st.none()
)
PUBLICATIONS = st.builds(
    Publication,
    data=JSON,
    info=st.none() | INFOS,
    tags=st.none() | st.dictionaries(TEXT, TEXT, min_size=1, max_size=2),
    time=st.integers(0, TIME_MAX),
)


def log_item(
    pubs: str, count: int = 1, *, offset: int = 1, channel: str = "c", epoch: str = "e"
) -> LogItem:
    return LogItem(channel, offset, offset + count - 1, epoch, pubs, "b", "n", 9, 9)


@st.composite
def records(draw: st.DrawFn) -> Record:
    offset = draw(st.integers(1, 2**53 - 10))
    publications = draw(st.lists(PUBLICATIONS, min_size=1, max_size=3))
    numbered = tuple(
        Publication(each.data, offset + index, each.info, each.tags, each.time)
        for index, each in enumerate(publications)
    )
    last = offset + len(numbered) - 1
    epoch = draw(st.text(min_size=1, max_size=6))
    pointer = draw(st.booleans())
    return Record(
        draw(TEXT),
        epoch,
        offset,
        last,
        draw(st.integers(0, TIME_MAX)),
        None if pointer else numbered,
    )


SIGNALS = st.builds(Signal, kind=TEXT, id=TEXT, node=TEXT, channel=TEXT, body=JSON)


def text_of(record: Record) -> str:
    """As the stream Lambda makes it."""
    publications = record.publications
    pubs = json.dumps([each.stored() for each in publications or ()], ensure_ascii=False)
    made = LogItem(
        record.channel, record.offset, record.last, record.epoch, pubs, "b", "n", record.ts, 0
    )
    return record_text(made, None if publications is None else checked_pubs(made))


def is_fit_for_sqs(body: str) -> bool:
    """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html"""
    return all(
        char in "\t\n\r"
        or "\x20" <= char <= "\ud7ff"
        or "\ue000" <= char <= "\ufffd"
        or char >= "\U00010000"
        for char in body
    )


# ---- there and back


@DECODERS
@settings(max_examples=50)
@given(
    packed=st.lists(records(), max_size=6),
    bytes_max=st.sampled_from([2000, 4000, ENVELOPE_BYTES_MAX]),
)
def test_records_come_out_as_they_went_in(
    loads: Loads, packed: list[Record], bytes_max: int
) -> None:
    texts = [text for record in packed if len((text := text_of(record)).encode()) < bytes_max - 100]
    expected = [record for record in packed if len(text_of(record).encode()) < bytes_max - 100]
    found: list[Record] = []
    for body, count in pack(texts, bytes_max=bytes_max):
        assert len(body.encode()) <= bytes_max
        assert is_fit_for_sqs(body)
        assert "\n" not in body
        envelope = parse(body, loads)
        assert (len(envelope.records), envelope.signals, envelope.broken) == (count, (), 0)
        found.extend(envelope.records)
    assert found == expected


@DECODERS
@settings(max_examples=50)
@given(sent=st.lists(SIGNALS, max_size=6))
def test_signals_come_out_as_they_went_in(loads: Loads, sent: list[Signal]) -> None:
    found: list[Signal] = []
    for body, count in pack(map(signal_text, sent), signals=True, bytes_max=2000):
        assert len(body.encode()) <= 2000
        assert is_fit_for_sqs(body)
        assert "\n" not in body
        envelope = parse(body, loads)
        assert (len(envelope.signals), envelope.records, envelope.broken) == (count, (), 0)
        found.extend(envelope.signals)
    assert found == sent


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@given(
    st.lists(st.text("aä😀", min_size=2, max_size=12).map(quoted), max_size=30),
    st.integers(110, 200),
)
def test_as_few_messages_as_the_budget_allows(texts: list[str], bytes_max: int) -> None:
    bodies = list(pack(texts, bytes_max=bytes_max))
    assert sum(count for _, count in bodies) == len(texts)
    assert [text for body, _ in bodies for text in json.loads(body)["records"]] == list(
        map(json.loads, texts)
    )
    start = 0
    for body, count in bodies:
        assert count >= 1
        assert len(body.encode()) <= bytes_max
        start += count
        if start < len(texts):
            # The next text did not fit; one byte may be given away for a comma that the
            # last one does not need.
            assert len(f"{body},{texts[start]}".encode()) > bytes_max - 1


def test_the_byte_budget_is_exact_to_a_comma() -> None:
    empty = len('{"v":1,"records":[]}')
    fits = '"' + "ä" * 38 + '"'
    ((body, count),) = pack([fits], bytes_max=empty + len(fits.encode()) + 1)
    assert count == 1
    assert len(body.encode()) == empty + len(fits.encode())
    with pytest.raises(ValueError, match="exceeds"):
        list(pack([fits], bytes_max=empty + len(fits.encode())))


@DECODERS
@pytest.mark.parametrize("signals", [False, True])
def test_a_message_tells_when_it_was_published_within_the_same_budget(
    loads: Loads, signals: bool
) -> None:
    text = (
        signal_text(Signal("pub", "1", "n", "c", {}))
        if signals
        else record_text(log_item("", 1), None)
    )
    bodies = list(pack([text] * 20, signals=signals, at=1_700_000_000_000, bytes_max=300))
    assert sum(count for _, count in bodies) == 20
    for body, _ in bodies:
        assert len(body.encode()) <= 300
        assert parse(body, loads).at == 1_700_000_000_000
    ((untold, _),) = pack([text], signals=signals)
    assert parse(untold, loads).at == 0


@DECODERS
@pytest.mark.parametrize("at", ["1", None, 1.5, [], {}])
def test_a_time_that_is_none_is_not_told(loads: Loads, at: Any) -> None:
    assert parse(json.dumps({"v": 1, "at": at}), loads) == Envelope((), (), 0, 0)


def test_what_cannot_fit_is_refused_after_what_came_before() -> None:
    packing = pack(["1", "x" * ENVELOPE_BYTES_MAX])
    with pytest.raises(ValueError, match="exceeds"):
        list(packing)
    assert list(pack([])) == []


def test_sns_takes_the_largest_message() -> None:
    assert ENVELOPE_BYTES_MAX < 262_144


@DECODERS
@settings(max_examples=50)
@given(published=PUBLICATIONS, channel=TEXT)
def test_a_signal_whose_text_is_there_says_the_same(
    loads: Loads, published: Publication, channel: str
) -> None:
    stored = stored_of(published)
    with_text = Signal("pub", "1", "n", channel, stored.fields, stored.text)
    without = Signal("pub", "1", "n", channel, stored.fields)
    for one in (with_text, without):
        [(body, _)] = pack([signal_text(one)], signals=True)
        assert is_fit_for_sqs(body)
        assert parse(body, loads).signals == (without,)


@DECODERS
def test_a_node_s_own_signals_are_left_out_but_for_its_greetings(loads: Loads) -> None:
    sent = [Signal(kind, "1", node, "c", None) for kind in ("pub", "hello") for node in ("a", "b")]
    texts = [*map(signal_text, sent), "7", '{"node":"a"}']
    [(body, _)] = pack(texts, signals=True)
    own_pub, other_pub, own_hello, other_hello = sent
    mine = parse(body, loads, own="a")
    assert (mine.signals, mine.broken) == ((other_pub, own_hello, other_hello), 1)
    assert parse(body, loads).signals == (own_pub, other_pub, own_hello, other_hello)


@DECODERS
def test_non_characters_travel_as_escapes(loads: Loads) -> None:
    made = log_item(json.dumps([{"data": "a\ufffeb\uffffc"}], ensure_ascii=False))
    text = record_text(made, checked_pubs(made))
    assert "\\ufffe" in text
    assert "\\uffff" in text
    ((body, _),) = pack([text])
    (record,) = parse(body, loads).records
    assert record.publications == (Publication("a\ufffeb\uffffc", 1),)
    told = signal_text(Signal("pub", "1", "n", "c", {"data": "\uffff"}))
    assert "\\uffff" in told
    assert parse(f'{{"v":1,"signals":[{told}]}}', loads).signals[0].body == {"data": "\uffff"}


@DECODERS
def test_a_pointer_says_where_to_read(loads: Loads) -> None:
    ((body, _),) = pack([record_text(log_item("not looked at", 3, offset=5), None)])
    assert parse(body, loads).records == (Record("c", "e", 5, 7, 9, None),)


# ---- versions


@DECODERS
@pytest.mark.parametrize("version", [0, 2, 99, -1])
def test_records_of_an_unknown_version_are_pointers_and_signals_are_dropped(
    loads: Loads, version: int
) -> None:
    entry = {"channel": "c", "epoch": "e", "offset": 1, "last": 2, "pubs": "?", "ts": 3}
    signal = {"kind": "pub", "id": "1", "node": "n", "channel": "c", "body": {}}
    body = json.dumps(
        {"v": version, "records": [entry, {**entry, "offset": "1"}], "signals": [signal, 5]}
    )
    assert parse(body, loads) == Envelope((Record("c", "e", 1, 2, 3, None),), (), 1)


@DECODERS
def test_unknown_fields_are_no_fault(loads: Loads) -> None:
    entry = {"channel": "c", "epoch": "e", "offset": 1, "last": 1, "later": [1]}
    assert parse(json.dumps({"v": 1, "records": [entry], "later": {}}), loads) == Envelope(
        (Record("c", "e", 1, 1, 0, None),), (), 0
    )


# ---- what is broken

GOOD: Final[dict[str, Any]] = {
    "channel": "c",
    "epoch": "e",
    "offset": 2,
    "last": 3,
    "ts": 1,
    "pubs": [{"data": 1}, {"data": 2}],
}

POINTER = {"channel": "c", "epoch": "e", "offset": 2, "last": 3}


@DECODERS
@pytest.mark.parametrize(
    "entry",
    [
        None,
        1,
        "x",
        [],
        {},
        {**GOOD, "channel": None},
        {**GOOD, "channel": 5},
        {**GOOD, "epoch": ""},
        {**GOOD, "epoch": 1},
        {**GOOD, "offset": 0},
        {**GOOD, "offset": 4},
        {**GOOD, "offset": "2"},
        {**GOOD, "offset": 2.0},
        {**POINTER, "last": 2**53},
        {**POINTER, "offset": 4},
        {**POINTER, "offset": 0, "last": 0},
        {**GOOD, "last": 4},
        {**GOOD, "last": 2},
        {**GOOD, "ts": "1"},
        {**GOOD, "ts": None},
        {**GOOD, "ts": -1},
        {**GOOD, "ts": 2**53},
        {**GOOD, "ts": 2**63},
        {**GOOD, "ts": True},
        {**POINTER, "offset": True, "last": True},
        {**POINTER, "epoch": "e" * (EPOCH_CHARS_MAX + 1)},
        {**POINTER, "channel": "c" * 256},
        {**GOOD, "pubs": [{"data": 1}, {"data": 2, "time": 2**53}]},
        {**GOOD, "pubs": [{"data": 1}, {"data": 2, "time": -1}]},
        {**GOOD, "pubs": {}},
        {**GOOD, "pubs": [{"data": 1}]},
        {**GOOD, "pubs": [{"data": 1}, 2]},
        {**GOOD, "pubs": [{"data": 1}, {}]},
        {**GOOD, "pubs": [{"data": 1}, {"data": 1, "tags": [1]}]},
    ],
    ids=str,
)
def test_a_broken_record_is_counted_and_costs_no_other(loads: Loads, entry: Any) -> None:
    envelope = parse(json.dumps({"v": 1, "records": [GOOD, entry, GOOD]}), loads)
    assert envelope.broken == 1
    assert [record.offset for record in envelope.records] == [2, 2]


class Top:
    """A reader that has epoch "e" up to offset `top`."""

    def __init__(self, top: int) -> None:
        self.top = top

    def has(self, epoch: str, last: int) -> bool:
        return epoch == "e" and last <= self.top


@DECODERS
@pytest.mark.parametrize(
    "entry, wanted",
    [
        ({**GOOD, "channel": "nobody reads it"}, False),
        ({**GOOD, "channel": "has it"}, False),
        ({**GOOD, "channel": "has it", "epoch": "f"}, True),
        ({**GOOD, "channel": "has less"}, True),
        ({**GOOD, "channel": "always"}, True),
    ],
    ids=str,
)
def test_only_records_that_a_reader_lacks_are_read(loads: Loads, entry: Any, wanted: bool) -> None:
    readers = {"has it": Top(GOOD["last"]), "has less": Top(GOOD["last"] - 1)}
    envelope = parse(json.dumps({"v": 1, "records": [entry]}), loads, readers, "always")
    assert len(envelope.records) == wanted
    assert (envelope.unwanted, envelope.broken) == (not wanted, 0)


@DECODERS
@pytest.mark.parametrize(
    "entry",
    [
        *(None, 1, "x", [], {}),
        {"channel": []},
        {"channel": {}},
        {"channel": "read"},
        {**GOOD, "channel": "read", "last": "2"},
        {**GOOD, "channel": "read", "last": None},
        {**GOOD, "channel": "read", "last": []},
    ],
    ids=str,
)
def test_a_record_of_which_it_cannot_be_told_is_broken(loads: Loads, entry: Any) -> None:
    readers = {"read": Top(1), GOOD["channel"]: Top(0)}
    envelope = parse(json.dumps({"v": 1, "records": [entry, GOOD]}), loads, readers)
    assert (len(envelope.records), envelope.unwanted, envelope.broken) == (1, 0, 1)


@DECODERS
@pytest.mark.parametrize("name", ["kind", "id", "node", "channel"])
@pytest.mark.parametrize("value", [None, 1, [], "x" * 256])
def test_a_broken_signal_is_counted_and_costs_no_other(loads: Loads, name: str, value: Any) -> None:
    good = {"kind": "pub", "id": "1", "node": "n", "channel": "c"}
    envelope = parse(json.dumps({"v": 1, "signals": [{**good, name: value}, "x", good]}), loads)
    assert envelope == Envelope((), (Signal("pub", "1", "n", "c", None),), 2)


@DECODERS
@pytest.mark.parametrize("at", [-1, 2**53, 2**64, True, "1", 1.5])
def test_a_time_of_publishing_that_is_none_is_not_told(loads: Loads, at: Any) -> None:
    """Figures are made of it, which no JSON would hold."""
    assert parse(json.dumps({"v": 1, "at": at, "records": [GOOD]}), loads).at == 0


@DECODERS
@pytest.mark.parametrize(
    "body",
    [
        "",
        "x",
        "{",
        "[]",
        "null",
        "1",
        '"v"',
        "{}",
        '{"v":"1"}',
        '{"v":null}',
        '{"v":1.0}',
        "[" * 100_000,
    ],
    ids=lambda body: body[:10],
)
def test_what_is_no_envelope_is_malformed(loads: Loads, body: str) -> None:
    with pytest.raises(MalformedEnvelope):
        parse(body, loads)


FIELDS = {
    "channel": TEXT | JSON,
    "epoch": TEXT | JSON,
    "offset": st.integers(-1, 4) | JSON,
    "last": st.integers(-1, 4) | JSON,
    "ts": st.integers() | JSON,
    "pubs": st.lists(st.fixed_dictionaries({"data": JSON}) | JSON, max_size=3) | JSON,
    "kind": TEXT,
    "id": TEXT | JSON,
    "node": TEXT,
    "body": JSON,
}
ENTRIES = st.lists(st.fixed_dictionaries({}, optional=FIELDS) | JSON, max_size=3) | JSON
BODIES = st.one_of(
    JSON.map(json.dumps),
    st.text(max_size=20),
    st.binary(max_size=20).map(lambda body: body.decode("utf-8", "surrogateescape")),
    st.fixed_dictionaries(
        {"v": st.just(1) | st.integers(0, 2) | JSON},
        optional={"records": ENTRIES, "signals": ENTRIES},
    ).map(json.dumps),
)


@DECODERS
@settings(max_examples=100)
@given(body=BODIES)
@example(body='{"v":1,"records":{}}')
@example(body='{"v":1,"records":null,"signals":5}')
@example(body='{"v":true,"records":[{"channel":"c","epoch":"e","offset":true,"last":true}]}')
@example(body='{"v":' + "1" * 5000 + "}")
@example(body="\ud800")
def test_no_body_raises_anything_but_malformed(loads: Loads, body: str) -> None:
    try:
        envelope = parse(body, loads)
    except MalformedEnvelope:
        return
    for record in envelope.records:
        assert record.epoch
        assert 1 <= record.offset <= record.last <= 2**53 - 1
        if record.publications is not None:
            offsets = [publication.offset for publication in record.publications]
            assert offsets == list(range(record.offset, record.last + 1))
    for signal in envelope.signals:
        assert all(
            type(text) is str for text in (signal.kind, signal.id, signal.node, signal.channel)
        )


# ---- what somebody else may have written into the table


@pytest.mark.parametrize(
    "pubs",
    [
        "",
        "null",
        "{}",
        "[]",
        '[{"data":1},{"data":2}]',
        "[1]",
        "[{}]",
        '[{"data":1}',
        '[{"data":1}]x',
        '[{"data":NaN}]',
        '[{"data":Infinity}]',
        '[{"data":-Infinity}]',
        '[{"data":{"deep":[1,NaN]}}]',
        '[{"data":1e999}]',
        '[{"data":-1e999}]',
        '[{"data":' + "9" * 309 + "}]",
        '[{"data":-' + "9" * 5000 + "}]",
        '[{"data":"\ud800"}]',
        '[{"data":"\\ud800"}]',
        '[{"data":"\\uDFFF"}]',
        '[{"data":1,"tags":{"\\ud83d":"x"}}]',
        '[{"data":1,"info":{"user":"a\\ud83d"}}]',
        '[{"data":"a\nb"}]',
        '[{"data":"a\tb"}]',
        '[{"data":01}]',
        '[{"data":1,}]',
        "[{'data':1}]",
        '\ufeff[{"data":1}]',
        '[{"data":1}]\u2028',
        '[{"data":1}]\uffff',
        '[{"data":1,"tags":{"a":1}}]',
        '[{"data":1,"time":"now"}]',
        '[{"data":1,"info":7}]',
        '[{"data":' + "[" * 100_000,
        '[{"data":' + "[" * DEPTH_MAX + "]" * DEPTH_MAX + "}]",
        '[{"data":' + '{"a":' * DEPTH_MAX + "1" + "}" * DEPTH_MAX + "}]",
    ],
    ids=lambda pubs: ascii(pubs[:30]),
)
def test_what_clients_must_not_get_is_refused(pubs: str) -> None:
    with pytest.raises(MalformedPublication):
        checked_pubs(log_item(pubs))


@DECODERS
@pytest.mark.parametrize(
    "pubs, data",
    [
        ('[\n  {"data":\r\n 1}\n]', 1),
        ('\t[ { "data" : "a\\nb" } ]\r', "a\nb"),
        ('[{"data":"\\u00e4\\ud83d\\ude00"}]', "ä😀"),
        ('[{"data":"\ufffe\\uffff"}]', "\ufffe\uffff"),
        ('[{"data":"\\\\ufffe"}]', "\\ufffe"),
        ('[{"data":1,"data":2}]', 2),
        ('[{"data":"\\ud800","data":2}]', 2),
        ('[{"data":1e308}]', 1e308),
        ('[{"data":1E-999}]', 0.0),
        ('[{"data":18446744073709551615}]', 2**64 - 1),
        ('[{"data":' + "1" * 308 + "}]", int("1" * 308)),
    ],
    ids=ascii,
)
def test_what_is_odd_but_json_is_one_line(loads: Loads, pubs: str, data: Any) -> None:
    made = log_item(pubs)
    text = record_text(made, checked_pubs(made))
    assert "\n" not in text
    assert "\r" not in text
    (record,) = parse(f'{{"v":1,"records":[{text}]}}', loads).records
    assert record.publications is not None
    found = record.publications[0].data
    assert found == (pytest.approx(data) if isinstance(data, int) else data)


def nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@DECODERS
@pytest.mark.parametrize("depth", [0, 1, 200, DEPTH_MAX - 2])
def test_every_reader_takes_what_is_nested_as_deep_as_allowed(loads: Loads, depth: int) -> None:
    made = log_item(json.dumps([{"data": nested(depth)}]))
    body = f'{{"v":1,"records":[{record_text(made, checked_pubs(made))}]}}'
    assert parse(body, loads).broken == 0
    with pytest.raises(MalformedPublication):
        checked_pubs(log_item(json.dumps([{"data": nested(DEPTH_MAX - 1)}])))


# Everything that Python takes for JSON, spelt in all of its ways.
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=4)
    | WEIRD,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner)
    ),
    max_leaves=6,
)
STORED = (
    st.fixed_dictionaries({"data": ANYTHING}, optional={"tags": st.dictionaries(TEXT, TEXT)})
    | ANYTHING
)


@settings(max_examples=100)
@given(st.lists(STORED, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 0, 2]))
def test_one_damaged_item_never_spoils_the_message_it_travels_in(
    stored: list[Any], ensure_ascii: bool, indent: int | None
) -> None:
    made = log_item(json.dumps(stored, ensure_ascii=ensure_ascii, indent=indent), len(stored))
    try:
        text = record_text(made, checked_pubs(made))
    except MalformedPublication:
        return
    ((body, _),) = pack([text, text_of(Record("other", "e", 1, 1, 0, (Publication("x", 1),)))])
    assert is_fit_for_sqs(body)
    assert "\n" not in body
    for loads in (json.loads, orjson.loads):
        envelope = parse(body, loads)
        assert envelope.broken == 0
        record, other = envelope.records
        assert other.channel == "other"
        assert [each.offset for each in record.publications or ()] == list(
            range(1, len(stored) + 1)
        )


@pytest.mark.parametrize(
    "body",
    [float("nan"), float("inf"), "\ud800", {"\udc00": 1}, nested(DEPTH_MAX), object(), {1: b""}],
)
def test_a_signal_that_is_not_json_everywhere_is_refused(body: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        signal_text(Signal("pub", "1", "n", "c", body))


def test_a_signals_own_texts_are_json_too() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        signal_text(Signal("pub", "1", "n", "\ud800", None))


# ---- express hints


@DECODERS
@given(packed=st.lists(records(), max_size=6), bytes_max=st.sampled_from([2000, 4000]))
def test_express_hints_there_and_back(loads: Loads, packed: list[Record], bytes_max: int) -> None:
    sent = [each for each in packed if each.publications is not None]
    texts = [text_of(each) for each in sent]
    if any(len(text.encode()) > bytes_max - 100 for text in texts):
        return
    bodies = [body for body, _ in pack(texts, express="n", bytes_max=bytes_max)]
    assert all(len(body.encode()) <= bytes_max and is_fit_for_sqs(body) for body in bodies)
    found = [parse(body, loads) for body in bodies]
    assert [each for one in found for each in one.express] == [
        replace(each, express=True) for each in sent
    ]
    # Nobody takes them for what the stream brings.
    assert not any(one.records or one.signals or one.unwanted or one.broken for one in found)
    # Their writer has them.
    assert not any(parse(body, loads, own="n").express for body in bodies)


def test_express_hints_of_another_version_are_passed_over() -> None:
    [(body, _)] = pack([text_of(Record("c", "e", 1, 1, 0, (Publication("x", 1),)))], express="n")
    assert parse(body).express
    assert parse(body.replace('"v":1', '"v":2')) == Envelope((), (), 0)


@DECODERS
@given(entry=ANYTHING | st.lists(ANYTHING))
def test_what_is_no_express_hint_is_passed_over(loads: Loads, entry: Any) -> None:
    try:
        body = json.dumps({"v": 1, "node": "n", "express": [entry]})
        loads(body)
    except (TypeError, ValueError, RecursionError):
        return
    followed: dict[str, Any] = {}
    assert parse(body, loads).express == ()
    assert parse(body, loads, followed).express == ()


# ---- topic shards


@DECODERS
@given(shards=st.integers(1, SHARDS_MAX), data=st.data())
def test_an_envelope_says_through_which_topic_shard_it_came(
    loads: Loads, shards: int, data: st.DataObject
) -> None:
    shard = data.draw(st.none() | st.integers(0, shards - 1)) if shards > 1 else None
    [(body, _)] = pack(['{"kind":"x"}'], signals=True, at=5, shards=shards, shard=shard)
    envelope = parse(body, loads)
    assert (envelope.shards, envelope.shard, envelope.at) == (shards, shard, 5)


@pytest.mark.parametrize("shards", ["4", 0, 17, -1, True, None, 4.0, [4]])
def test_a_number_of_topic_shards_that_is_none_is_passed_over(shards: Any) -> None:
    envelope = parse(json.dumps({"v": 1, "shards": shards, "shard": 0}))
    assert (envelope.shards, envelope.shard) in ((1, None), (1, 0))


@pytest.mark.parametrize("shard", ["1", 4, -1, True, None, 1.0, [1]])
def test_a_topic_shard_that_there_is_not_is_passed_over(shard: Any) -> None:
    envelope = parse(json.dumps({"v": 1, "shards": 4, "shard": shard}))
    assert (envelope.shards, envelope.shard) == (4, None)


# ---- traces


TRACE = TraceContext("a" * 32, "b" * 16)


def test_a_trace_is_one_more_field_that_older_readers_pass_over() -> None:
    plain = log_item('[{"data":1}]')
    traced = replace(plain, trace=TRACE)
    pubs = checked_pubs(plain)
    before, after = (json.loads(record_text(each, pubs)) for each in (plain, traced))
    assert after == before | {"trace": TRACE.traceparent()}
    assert record_text(traced, None) == record_text(plain, None), "a pointer has none"
    signal = Signal("pub", "id", "n", "c", {"data": 1})
    told = json.loads(signal_text(replace(signal, trail=Trail(TRACE, BY_SIGNAL))))
    assert told == json.loads(signal_text(signal)) | {"trace": TRACE.traceparent()}


@DECODERS
def test_a_reader_knows_the_trace_and_how_it_came(loads: Loads) -> None:
    traced = replace(log_item('[{"data":1}]'), trace=TRACE)
    [(stream, _)] = pack([record_text(traced, checked_pubs(traced))], at=77)
    [(hint, _)] = pack([express_text(traced)], express="n")
    signal = Signal("pub", "id", "n", "c", {"data": 1}, trail=Trail(TRACE, BY_SIGNAL))
    [(signals, _)] = pack([signal_text(signal)], signals=True)
    assert parse(stream, loads).records[0].trail == Trail(TRACE, BY_STREAM, 9, 77)
    assert parse(hint, loads).express[0].trail == Trail(TRACE, BY_EXPRESS, 9)
    assert parse(signals, loads).signals[0].trail == Trail(TRACE, BY_SIGNAL)
    # Another version's publications are read from the log, and so are no part of a trace.
    assert parse(stream.replace('"v":1', '"v":2'), loads).records[0].trail is None
