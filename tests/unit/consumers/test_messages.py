"""service/roomcast/consumers/messages.py: each form of Centrifugo's, and what has none."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.config import AwsSqsConfig, PublicationDataModeConfig
from roomcast.consumers.messages import Command, QueueMessage, Unreadable, command_of

ID: Final = "b0d9b1a2-6f0f-4f57-a2fc-7f2b8a3cbe10"
COMMANDS: Final = AwsSqsConfig()
NOTIFIED: Final = AwsSqsConfig(sns_envelope=True)
PUBLICATIONS: Final = AwsSqsConfig(publication_data_mode=PublicationDataModeConfig(enabled=True))
FROM_SNS: Final = replace(PUBLICATIONS, sns_envelope=True)
PAYLOAD: Final = {"channel": "a", "data": {"text": "hi"}}


def message(body: Any, **attributes: str) -> QueueMessage:
    text = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in attributes.items()}
    return QueueMessage(ID, text, named, "receipt", 1, 1, 1)


def read(body: Any, form: AwsSqsConfig = COMMANDS, /, **attributes: str) -> Command:
    return command_of(message(body, **attributes), form, orjson.loads)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def notification(text: str, **more: Any) -> dict[str, Any]:
    """As SNS has it (docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html)."""
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic",
        "Message": text,
        "Timestamp": "2012-05-02T00:54:06.655Z",
    } | more


@pytest.mark.parametrize("payload", [PAYLOAD, json.dumps(PAYLOAD)])
def test_a_command_in_the_body(payload: Any) -> None:
    assert read({"method": "publish", "payload": payload}) == Command("publish", PAYLOAD, ID)


def test_an_attribute_that_names_the_method() -> None:
    assert read(PAYLOAD, centrifugo_method="broadcast") == Command("broadcast", PAYLOAD, ID)
    other = AwsSqsConfig(method_attribute="method")
    assert read(PAYLOAD, other, method="publish").method == "publish"
    # With no name there is none, whatever the attributes are.
    whole = {"method": "publish", "payload": PAYLOAD}
    assert read(whole, AwsSqsConfig(method_attribute="")).method == "publish"


def test_a_notification_has_the_message_and_a_key() -> None:
    whole = json.dumps({"method": "publish", "payload": PAYLOAD})
    command = read(notification(whole), NOTIFIED)
    assert command == Command("publish", PAYLOAD, "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324")
    for id_ in (None, 5, "", "x" * 65, "\n"):
        assert read(notification(whole, MessageId=id_), NOTIFIED).key == ID


def test_attributes_of_a_notification_count() -> None:
    attributes = {
        "centrifugo-channels": {"Type": "String", "Value": "a"},
        "centrifugo-tag-kind": {"Type": "String", "Value": "note"},
        "centrifugo-tag-picture": {"Type": "Binary", "Value": "AAAA"},
        "centrifugo-tag-odd": 5,
        "centrifugo-tag-none": {"Type": "String"},
    }
    command = read(notification("5", MessageAttributes=attributes), FROM_SNS)
    expected = {"channel": "a", "b64data": encoded("5"), "tags": {"kind": "note"}}
    assert (command.method, command.params) == ("publish", expected)
    own = read(notification("5", MessageAttributes=attributes), FROM_SNS, centrifugo_channels="b")
    assert own.params["channel"] == "b", "those of the message itself go before"


def test_a_publication_is_the_body_and_its_attributes() -> None:
    body = '{ "as":"it is" }'
    command = read(
        body,
        PUBLICATIONS,
        centrifugo_channels="a",
        centrifugo_idempotency_key="order-1",
        centrifugo_delta="true",
        centrifugo_version="18446744073709551615",
        centrifugo_version_epoch="e",
        centrifugo_tag_kind="note",
        other="ignored",
    )
    assert command.method == "publish"
    assert command.params == {
        "channel": "a",
        "b64data": encoded(body),
        "idempotency_key": "order-1",
        "delta": True,
        "version": 2**64 - 1,
        "version_epoch": "e",
        "tags": {"kind": "note"},
    }
    several = read(body, PUBLICATIONS, centrifugo_channels="a,b")
    assert several.method == "broadcast"
    assert several.params["channels"] == ["a", "b"]


def test_attributes_without_a_name_are_not_read() -> None:
    silent = PublicationDataModeConfig(
        enabled=True,
        idempotency_key_attribute="",
        delta_attribute="",
        version_attribute="",
        version_epoch_attribute="",
        tags_attribute_prefix="",
    )
    attributes = {"centrifugo-channels": "a", "": "x", "centrifugo-delta": "nonsense"}
    found = replace(message("5"), attributes=attributes)
    command = command_of(found, AwsSqsConfig(publication_data_mode=silent), orjson.loads)
    assert command.params == {"channel": "a", "b64data": encoded("5")}


@pytest.mark.parametrize(
    "body, form, attributes, why",
    [
        ("{", COMMANDS, {}, "the body is not JSON"),
        ("[]", COMMANDS, {}, "the body is no JSON object"),
        ({"payload": {}}, COMMANDS, {}, "the body has no method"),
        ({"method": 5}, COMMANDS, {}, "the body has no method"),
        ({"method": "publish", "payload": "{"}, COMMANDS, {}, "the payload is not JSON"),
        ("{", COMMANDS, {"centrifugo_method": "publish"}, "the body is not JSON"),
        ("5", NOTIFIED, {}, "the body is no JSON object"),
        ({}, NOTIFIED, {}, "the body has no Message"),
        ({"Message": {}}, NOTIFIED, {}, "the body has no Message"),
        ({"Message": "{"}, NOTIFIED, {}, "the body is not JSON"),
        ("5", PUBLICATIONS, {}, "there is no attribute centrifugo-channels"),
        (
            "5",
            PUBLICATIONS,
            {"centrifugo_channels": "a", "centrifugo_delta": "yes"},
            "the attribute centrifugo-delta is neither true nor false",
        ),
        (
            "5",
            PUBLICATIONS,
            {"centrifugo_channels": "a", "centrifugo_version": "-1"},
            "the attribute centrifugo-version is no whole number",
        ),
        ("\ud800", PUBLICATIONS, {"centrifugo_channels": "a"}, "the body has half a character"),
    ],
)
def test_what_has_no_form_is_said_without_its_content(
    body: Any, form: AwsSqsConfig, attributes: dict[str, str], why: str
) -> None:
    with pytest.raises(Unreadable, match=why):
        read(body, form, **attributes)


FORMS: Final = st.sampled_from([COMMANDS, NOTIFIED, PUBLICATIONS, FROM_SNS])
ANYTHING: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["method", "payload", "Message", "MessageId", "MessageAttributes", "Value", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
)
NAMES: Final = st.sampled_from(
    [
        "centrifugo-method",
        "centrifugo-channels",
        "centrifugo-delta",
        "centrifugo-version",
        "centrifugo-tag-",
        "centrifugo-tag-x",
    ]
)


@given(ANYTHING.map(json.dumps) | st.text(), FORMS, st.dictionaries(NAMES, st.text(max_size=8)))
def test_whatever_comes_is_a_command_or_unreadable(
    body: str, form: AwsSqsConfig, attributes: dict[str, str]
) -> None:
    found = QueueMessage(ID, body, attributes, "receipt", 1, 1, 1)
    try:
        command = command_of(found, form, orjson.loads)
    except Unreadable:
        return
    assert isinstance(command.method, str)
    assert 0 < len(command.key) <= 64
    orjson.dumps(command.params)


@given(
    st.text(min_size=1).filter(lambda text: text.isprintable()),
    st.lists(st.text("abc:", min_size=1), min_size=1, max_size=5),
    st.dictionaries(st.text("abc", max_size=3), st.text()),
)
def test_a_publication_keeps_its_bytes_channels_and_tags(
    body: str, channels: list[str], tags: dict[str, str]
) -> None:
    attributes = {f"centrifugo-tag-{name}": value for name, value in tags.items()}
    attributes["centrifugo-channels"] = ",".join(channels)
    found = replace(message(body), attributes=attributes)
    for form, sent in (
        (PUBLICATIONS, found),
        (FROM_SNS, replace(found, body=json.dumps(notification(body)))),
    ):
        params = command_of(sent, form, orjson.loads).params
        assert base64.b64decode(params["b64data"]).decode() == body
        assert params.get("channels", [params.get("channel")]) == channels
        assert params["tags"] == tags
