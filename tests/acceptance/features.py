"""What the published SDKs offer, and which test shows for which SDK that it works here:
docs/compatibility.md is made of it.

To add a feature, add a row; to show it for more SDKs, name another test.
A test counts for the SDKs in its parameters `sdk`, `here` and `there`, and for the transport in
`over`; for those of its own that `WITHIN` names, and for cent where it uses a client of the back
end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.acceptance.peers import CLIENTS, PROTOBUF, SDKS

__all__ = ["CENT", "SECTIONS", "WITHIN", "WITHOUT_SDK", "Feature", "Section"]

CENT: Final = "cent"
# The transports of clients without an SDK, which are a test's parameter `over`.
WITHOUT_SDK: Final = ("uni_http_stream", "uni_sse", "uni_websocket")
# What the columns are called.
TITLES: Final = {
    "js": "JavaScript, JSON",
    f"js{PROTOBUF}": "JavaScript, Protobuf",
    "py": "Python, JSON",
    f"py{PROTOBUF}": "Python, Protobuf",
    CENT: "cent",
    "uni_http_stream": "HTTP streaming (curl)",
    "uni_sse": "Server-Sent Events (curl)",
    "uni_websocket": "WebSocket (ws)",
}
_JS: Final = ("js", f"js{PROTOBUF}")
_PY: Final = ("py", f"py{PROTOBUF}")
_COLUMNS: Final = (*_JS, *_PY)


@dataclass(frozen=True, slots=True)
class Feature:
    """One row. `shown_by`: file and test, without directory and ending.
    `without`: why it does not work, by SDK. `without_by`: what shows that.
    """

    title: str
    shown_by: Sequence[str] = ()
    without: Mapping[str, str] = field(default_factory=dict)
    without_by: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """One table."""

    heading: str
    sdks: Sequence[str]
    features: Sequence[Feature]


def _no(sdks: Sequence[str], why: str) -> Mapping[str, str]:
    return dict.fromkeys(sdks, why)


_NOT_IN_PYTHON: Final = _no(_PY, "not in this SDK")


def _nowhere(why: str) -> Mapping[str, str]:
    return {**_no(_JS, why), **_NOT_IN_PYTHON}


# What shows that it is not in the SDK for Python, and what that it is not in roomcast for cent.
_NOT_PYTHONS: Final = "test_not_there::test_what_the_sdk_for_python_does_not_have"
_NOT_CENTS: Final = ("test_not_there::test_what_of_cent_is_not_there",)


# What shows that there is no other transport than WebSockets in it.
_PYTHON_ALONE: Final = "test_streams::test_the_sdk_for_python_speaks_over_websockets_alone"
_NO_TRANSPORT: Final = (
    "test_streams::test_a_transport_that_is_not_there_is_passed_over",
    _PYTHON_ALONE,
)
_STREAMS: Final = (
    "test_streams::test_a_client_behind_a_balancer_does_what_others_do",
    "test_streams::test_a_burst_of_one_client_keeps_its_order",
    "test_streams::test_after_a_cut_nothing_is_missed",
    "test_streams::test_when_the_instance_of_a_session_is_killed_the_client_comes_back",
)

# Tests that go through SDKs by themselves.
WITHIN: Final[Mapping[str, Sequence[str]]] = dict.fromkeys(
    (
        "test_tokens::test_sessions_go_on_with_fresh_tokens",
        "test_tokens::test_who_refreshes_with_an_expired_token_is_asked_for_another",
        "test_tokens::test_who_refreshes_a_subscription_with_an_expired_token_is_asked_for_another",
        "test_recovery::test_a_cut_in_the_middle_of_a_stream_loses_nothing",
        "test_server_api::test_subscriptions_come_with_the_token_and_recover",
        "test_limits::test_clients_that_answer_pings_stay",
    ),
    CLIENTS,
)

SECTIONS: Final = (
    Section(
        "Connections",
        _COLUMNS,
        (
            Feature("with a token", ["test_messages::test_a_message_crosses_instances_and_sdks"]),
            Feature(
                "without a token",
                ["test_permissions::test_without_a_token_only_what_is_open_to_all"],
            ),
            Feature(
                "`getToken` for the first token", ["test_limits::test_the_first_token_is_asked_for"]
            ),
            Feature(
                "`getToken` after error 109",
                ["test_permissions::test_an_expired_token_is_replaced"],
            ),
            Feature(
                "refresh of the token while connected",
                ["test_tokens::test_sessions_go_on_with_fresh_tokens"],
            ),
            Feature("`data` of the connection, and of the reply", ["test_hooks::test_the_example"]),
            Feature("ping and pong", ["test_limits::test_clients_that_answer_pings_stay"]),
            Feature(
                "reconnect when the network fails",
                ["test_recovery::test_fifty_missed_messages_come_once_and_in_order"],
            ),
            Feature(
                "reconnect after codes that are not terminal (3001, 3005, 4000, …)",
                [
                    "test_server_api::test_a_client_that_may_come_back_does",
                    "test_tokens::test_who_refreshes_with_an_expired_token_is_asked_for_another",
                ],
            ),
            Feature(
                "no reconnect after terminal codes (3500, 3504, 4500, …)",
                [
                    "test_permissions::test_a_token_of_another_key_is_the_end",
                    "test_limits::test_one_connection_too_many_is_closed_for_good",
                    "test_server_api::test_a_client_is_disconnected",
                ],
            ),
            Feature(
                "another attempt when the handshake is refused (429)",
                ["test_limits::test_a_refused_handshake_is_tried_again"],
            ),
        ),
    ),
    Section(
        "Subscriptions",
        _COLUMNS,
        (
            Feature(
                "subscribe and unsubscribe",
                ["test_messages::test_unsubscribed_is_silent_until_subscribed_again"],
            ),
            Feature(
                "subscription token",
                ["test_permissions::test_a_private_channel_needs_its_own_token"],
            ),
            Feature(
                "refresh of the subscription's token",
                [
                    "test_tokens::test_sessions_go_on_with_fresh_tokens",
                    "test_tokens::test_who_refreshes_a_subscription_with_an_expired_token_is_asked_for_another",
                ],
            ),
            Feature(
                "`positioned`, `recoverable`", ["test_limits::test_positions_for_those_who_ask"]
            ),
            Feature(
                "recovery",
                [
                    "test_recovery::test_after_disconnect_and_connect",
                    "test_recovery::test_fifty_missed_messages_come_once_and_in_order",
                    "test_recovery::test_a_cut_in_the_middle_of_a_stream_loses_nothing",
                ],
            ),
            Feature(
                "`recovered` is false when something is lost",
                [
                    "test_recovery::test_more_than_the_history_shows_is_not_recovered",
                    "test_recovery::test_a_log_that_began_anew_is_not_taken_for_the_old_one",
                ],
            ),
            Feature(
                "from a position of the application (JavaScript `since`, Python `get_state`)",
                ["test_limits::test_a_subscription_from_a_position_of_the_application"],
            ),
            Feature(
                "the newest publication first, if asked for (`force_recovery_mode`: cache)",
                ["test_latest_values::test_a_subscription_begins_with_the_newest_publication"],
            ),
            Feature(
                "the newest publication first, unasked (`auto_cache_recover`)",
                [
                    "test_latest_values::test_a_subscription_begins_with_the_newest_publication",
                    "test_latest_values::test_a_server_side_subscription_begins_with_the_newest_publication",
                ],
            ),
            Feature(
                "what is stale is left out (`version` in the server API)",
                ["test_latest_values::test_what_is_stale_reaches_nobody"],
            ),
            Feature("`data` of the reply", ["test_hooks::test_the_example"]),
            Feature(
                "join and leave events, forced or asked for",
                [
                    "test_messages::test_presence_and_joins_over_both_instances",
                    "test_limits::test_joins_and_leaves_for_those_who_ask",
                ],
            ),
            Feature(
                "server-side subscriptions: by token, with recovery",
                ["test_server_api::test_subscriptions_come_with_the_token_and_recover"],
            ),
            Feature(
                "server-side subscriptions: by the server API",
                ["test_server_api::test_a_client_is_subscribed_and_unsubscribed"],
            ),
            Feature("differences (`delta: fossil`)", ["test_shorter_pushes::test_differences"]),
            Feature(
                "channel compaction",
                ["test_shorter_pushes::test_channel_compaction"],
                # Decision 30.
                _no((f"js{PROTOBUF}", f"py{PROTOBUF}"), "not granted: names are sent"),
                ["test_shorter_pushes::test_channel_compaction"],
            ),
            Feature(
                "publications that are collected (`batch_max_delay`, `client.write_delay`)",
                [
                    "test_fast::test_all_come_once_and_in_order",
                    "test_fast::test_who_comes_back_has_all",
                ],
            ),
            Feature(
                "of those the newest only (`batch_flush_latest`)",
                ["test_fast::test_of_a_feed_the_newest_comes"],
            ),
            Feature(
                "tag filters (`tagsFilter`), with every comparison",
                ["test_filters::test_every_comparison"],
            ),
            Feature("tag filters and recovery", ["test_filters::test_what_passes_is_recovered"]),
            Feature(
                "map and shared poll subscriptions",
                without=_nowhere("error 108: experiments upstream"),
                without_by=["test_not_there::test_other_subscriptions_are_refused", _NOT_PYTHONS],
            ),
        ),
    ),
    Section(
        "Commands",
        _COLUMNS,
        (
            Feature("publish", ["test_messages::test_a_message_crosses_instances_and_sdks"]),
            Feature(
                "payloads byte for byte (up to some 45 KiB)",
                ["test_messages::test_bytes_arrive_as_they_were_sent"],
                _no(SDKS, "payloads are values here"),
                ["test_not_there::test_in_json_payloads_are_values"],
            ),
            Feature(
                "bytes that are no JSON (`publication_data_format: binary`)",
                [
                    "test_binary::test_any_bytes_reach_every_client_in_protobuf",
                    "test_binary::test_they_are_recovered_and_come_as_differences",
                ],
                _no(SDKS, "error 108: needs Protobuf"),
                ["test_binary::test_a_client_in_json_is_refused_and_told_why"],
            ),
            Feature(
                "publish faster than allowed: it waits",
                ["test_limits::test_who_publishes_too_fast_has_to_wait"],
            ),
            Feature("history: `limit`, `since`, `reverse`", ["test_messages::test_history"]),
            Feature(
                "presence, presence statistics",
                ["test_messages::test_presence_and_joins_over_both_instances"],
            ),
            Feature("RPC: methods of the application", ["test_hooks::test_the_example"]),
            Feature(
                "RPC: `roomcast.publish`",
                ["test_messages::test_what_is_published_again_with_its_key_is_published_once"],
            ),
            Feature(
                "batching (`startBatching`)",
                ["test_limits::test_commands_that_are_sent_together"],
                _NOT_IN_PYTHON,
                [_NOT_PYTHONS],
            ),
            Feature(
                "`send`",
                without=_nowhere("closed with 3508"),
                without_by=["test_limits::test_send_is_not_there", _NOT_PYTHONS],
            ),
            Feature(
                "`message` event (messages without a channel)",
                without=_nowhere("never sent"),
                # Nobody can send any.
                without_by=["test_limits::test_send_is_not_there", _NOT_PYTHONS],
            ),
        ),
    ),
    Section(
        "Transports",
        _COLUMNS,
        (
            Feature("WebSocket", ["test_messages::test_a_message_crosses_instances_and_sdks"]),
            Feature(
                "WebSocket, compressed (permessage-deflate)",
                ["test_fast::test_all_come_once_and_in_order"],
            ),
            Feature("HTTP streaming", _STREAMS, _NOT_IN_PYTHON, (_PYTHON_ALONE,)),
            Feature(
                "Server-Sent Events",
                _STREAMS,
                {f"js{PROTOBUF}": "JSON only: events are text", **_NOT_IN_PYTHON},
                ("test_streams::test_events_are_json", _PYTHON_ALONE),
            ),
            Feature(
                "from a blocked WebSocket to the next transport, in a browser",
                [
                    "test_fail_over::test_a_page_gets_in_and_comes_back_when_its_instance_is_killed",
                ],
                _NOT_IN_PYTHON,
                (_PYTHON_ALONE,),
            ),
            Feature(
                "WebTransport",
                without=_nowhere("404: needs HTTP/3"),
                without_by=_NO_TRANSPORT,
            ),
            Feature(
                "SockJS",
                without=_nowhere("404: the SDK itself advises against it"),
                without_by=_NO_TRANSPORT,
            ),
        ),
    ),
    Section(
        "Without an SDK",
        WITHOUT_SDK,
        (
            Feature(
                "hear what is published at another instance",
                ["test_unidirectional::test_it_hears_what_is_published_at_another_instance"],
            ),
            Feature(
                "recover at another instance",
                ["test_unidirectional::test_when_its_instance_is_killed_it_recovers_at_another"],
            ),
            Feature(
                "be subscribed, unsubscribed, refreshed and disconnected by the server API",
                ["test_unidirectional::test_what_a_back_end_does_to_it"],
            ),
            Feature(
                "be told why a `connect` is refused",
                ["test_unidirectional::test_it_is_told_why_it_may_not_connect"],
            ),
            Feature(
                "Protobuf, differences, numbers for names",
                without=_no(WITHOUT_SDK, "not there"),
                without_by=[
                    "test_unidirectional::test_what_it_gets_is_whole_and_in_json",
                    "test_unidirectional::test_asked_for_protobuf_it_is_json",
                ],
            ),
        ),
    ),
    Section(
        "cent, the server API",
        [CENT],
        (
            Feature(
                "`publish`",
                ["test_server_api::test_what_is_published_reaches_everybody_and_is_kept"],
            ),
            Feature(
                "`broadcast`",
                ["test_server_api::test_what_is_published_reaches_everybody_and_is_kept"],
            ),
            Feature(
                "`subscribe`", ["test_server_api::test_a_client_is_subscribed_and_unsubscribed"]
            ),
            Feature(
                "`unsubscribe`",
                [
                    "test_server_api::test_a_client_is_subscribed_and_unsubscribed",
                    "test_server_api::test_a_subscription_of_the_clients_own_is_ended",
                ],
            ),
            Feature("`disconnect`", ["test_server_api::test_a_client_is_disconnected"]),
            Feature(
                "`refresh`", ["test_server_api::test_a_connection_is_made_to_last_and_to_expire"]
            ),
            Feature(
                "`presence`", ["test_server_api::test_a_client_is_subscribed_and_unsubscribed"]
            ),
            Feature("`presence_stats`", ["test_server_api::test_what_there_is_on_all_instances"]),
            Feature(
                "`history`",
                ["test_server_api::test_what_is_published_reaches_everybody_and_is_kept"],
            ),
            Feature(
                "`history_remove`",
                ["test_server_api::test_what_is_published_reaches_everybody_and_is_kept"],
            ),
            Feature("`channels`", ["test_server_api::test_what_there_is_on_all_instances"]),
            Feature("`info`", ["test_server_api::test_what_there_is_on_all_instances"]),
            Feature("`batch`", ["test_server_api::test_a_batch"]),
            Feature(
                "`b64data`: any bytes, in `publish`, `broadcast`, `batch` and `history`",
                ["test_binary::test_a_back_end_publishes_and_reads_bytes"],
            ),
            Feature("`AsyncClient`", ["test_server_api::test_the_client_that_does_not_block"]),
            Feature("errors as exceptions", ["test_server_api::test_errors_are_cents_own"]),
            Feature("`connections`", without={CENT: "status 404"}, without_by=_NOT_CENTS),
            Feature(
                "`update_user_status`, `block_user`, `revoke_token` and others of the kind",
                without={CENT: "status 404"},
                without_by=_NOT_CENTS,
            ),
            Feature(
                "`device_…`, `…_push_notification`",
                without={CENT: "status 404: no push service"},
                without_by=_NOT_CENTS,
            ),
        ),
    ),
)
