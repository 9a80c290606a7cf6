"""service/roomcast/config/proxy_checks.py, and what proxy_options.py reads: hooks over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from roomcast.config import effective_toml, load
from roomcast.config.proxy_checks import aws_service
from roomcast.config.proxy_options import DisconnectOf, ErrorOf, StatusTransform
from tests.unit.config.files import refusal, write

WHOLE = """
[client.proxy.connect]
enabled = true
endpoint = "https://app.example.com/connect?v=1"
timeout = "500ms"
http_headers = ["Cookie"]
emulated_headers = ["Authorization"]
[client.proxy.connect.http]
static_headers = { X-Hook-Secret = "hush-hush" }
status_to_code_transforms = [
  { status_code = 404, to_error = { code = 404, message = "not found" } },
  { status_code = 429, to_error = { code = 429, message = "later", temporary = true } },
  { status_code = 403, to_disconnect = { code = 4503, reason = "no" } },
]
[channel.proxy.subscribe]
endpoint = "http://127.0.0.1:3000/subscribe"
include_connection_meta = true
[channel.without_namespace]
subscribe_proxy_enabled = true
[[channel.namespaces]]
name = "team"
subscribe_proxy_enabled = true
subscribe_proxy_name = "other"
publish_proxy_enabled = true
publish_proxy_name = "other"
[[proxies]]
name = "other"
endpoint = "https://x.lambda-url.eu-central-1.on.aws/"
aws_iam = true
binary_encoding = true
http = { static_headers = { X-A = "b" } }
"""


def test_all_of_it(tmp_path: Path) -> None:
    config = load(
        write(tmp_path, WHOLE),
        {"ROOMCAST_RPC_PROXY_ENDPOINT": "https://a.example/", "ROOMCAST_RPC_PROXY_TIMEOUT": "2s"},
    )
    connect = config.proxies.connect
    assert (connect.is_on, connect.timeout_ms) == (True, 500)
    assert connect.http.static_headers == (("X-Hook-Secret", "hush-hush"),)
    assert connect.http.status_to_code_transforms == (
        StatusTransform(404, to_error=ErrorOf(404, "not found")),
        StatusTransform(429, to_error=ErrorOf(429, "later", temporary=True)),
        StatusTransform(403, to_disconnect=DisconnectOf(4503, "no")),
    )
    assert not config.proxies.refresh.is_on
    assert config.proxies.rpc.timeout_ms == 2000
    asked = config.proxies.of_namespaces("subscribe", config.channel)
    assert asked == {"": config.proxies.subscribe, "other": config.proxies.named["other"]}
    assert list(config.proxies.of_namespaces("publish", config.channel)) == ["other"]
    for shown in (repr(config), effective_toml(config)):
        assert "hush" not in shown
    again = load(write(tmp_path, effective_toml(config)), {})
    assert again.channel == config.channel
    assert again.proxies.named["other"].http.static_headers == (("X-A", "***"),)
    assert again.proxies.connect.http.status_to_code_transforms == (
        connect.http.status_to_code_transforms
    )


def test_a_secret_may_come_from_the_environment() -> None:
    variable = "ROOMCAST_CLIENT_PROXY_CONNECT_HTTP_STATIC_HEADERS"
    config = load(None, {variable: '{"X-Hook-Secret": "hush"}'})
    assert config.proxies.connect.http.static_headers == (("X-Hook-Secret", "hush"),)
    for wrong in (
        '{"X-Hook-Secret": 1}',
        "hush-hush",
        '{"a b": "hush"}',
        '{"A": "hush\\r\\nB: c"}',
    ):
        told = refusal(None, {variable: wrong})
        assert told.startswith(f"environment: {variable} must be a table of header names and texts")
        assert "hush" not in told


CONNECT = '[client.proxy.connect]\nendpoint = "https://a.example/"\n'


@pytest.mark.parametrize(
    "text, message",
    [
        (
            f'{CONNECT}[hooks]\nconnect = "chat:connect"',
            "client.proxy.connect.endpoint must be empty with hooks.connect: one of them decides",
        ),
        (
            '[rpc.proxy]\nendpoint = "https://a.example/"\n[hooks]\nrpc = "chat:rpc"',
            "rpc.proxy.endpoint must be empty with hooks.rpc: one of them decides",
        ),
        (
            (
                '[channel.proxy.publish]\nendpoint = "https://a.example/"\n[channel.without_namespace]\n'
                'publish_proxy_enabled = true\n[hooks]\npublish = "chat:publish"'
            ),
            (
                "channel.without_namespace.publish_proxy_enabled must be false with hooks.publish: "
                "one of them decides"
            ),
        ),
        (
            '[channel.proxy.sub_refresh]\nendpoint = "https://a.example/"',
            (
                "channel.proxy.sub_refresh.endpoint is asked by no channel: set "
                "sub_refresh_proxy_enabled in [channel.without_namespace] or in "
                "[[channel.namespaces]]"
            ),
        ),
        (
            "[channel.without_namespace]\nsubscribe_proxy_enabled = true",
            (
                "channel.without_namespace.subscribe_proxy_enabled needs "
                "channel.proxy.subscribe.endpoint, or subscribe_proxy_name"
            ),
        ),
        (
            (
                '[[channel.namespaces]]\nname = "a"\npublish_proxy_enabled = true\n'
                'publish_proxy_name = "nobody"'
            ),
            (
                "channel.namespaces[0].publish_proxy_name must be the name of one of [[proxies]]; "
                "found 'nobody'"
            ),
        ),
        (
            '[channel.without_namespace]\npublish_proxy_name = "other"',
            "channel.without_namespace.publish_proxy_name needs publish_proxy_enabled too",
        ),
        (
            (
                "[channel.without_namespace]\npublish_proxy_enabled = true\n"
                'publish_proxy_name = "off"\n[[proxies]]\nname = "off"\nenabled = false\nendpoint = "https://a.example/"'
            ),
            "publish_proxy_name needs an endpoint of 'off' in [[proxies]]",
        ),
        (
            f'{CONNECT}http_headers = ["Host"]',
            (
                "client.proxy.connect.http_headers must not have 'Host': it belongs to the request "
                "itself"
            ),
        ),
        (
            f'{CONNECT}emulated_headers = ["transfer-encoding"]',
            "must not have 'transfer-encoding': it belongs to the request itself",
        ),
        (
            f'{CONNECT}http = {{ static_headers = {{ Proxy-Authorization = "x" }} }}',
            "client.proxy.connect.http.static_headers must not have 'Proxy-Authorization'",
        ),
        (
            f'{CONNECT}emulated_headers = ["x-secret"]\nhttp.static_headers = {{ X-Secret = "x" }}',
            "must not have 'x-secret', which http.static_headers has: clients could replace it",
        ),
        (
            f'{CONNECT}http.static_headers = {{ X-Secret = "x", x-secret = "y" }}',
            "client.proxy.connect.http.static_headers must not name a header twice",
        ),
        (
            f"{CONNECT}aws_iam = true",
            (
                "client.proxy.connect.aws_iam needs an endpoint that is the https:// address of a "
                "Lambda function URL or of an API Gateway"
            ),
        ),
        (
            (
                '[client.proxy.connect]\nendpoint = "https://x.lambda-url.eu-west-1.on.aws/"\n'
                'aws_iam = true\nhttp_headers = ["Authorization"]'
            ),
            "must not have 'Authorization': with aws_iam it is the signature's",
        ),
        ('[[proxies]]\nendpoint = "https://a.example/"', "proxies[0] needs a name"),
        ('[[proxies]]\nname = "a b"', "proxies[0].name must be 2 to 64 letters"),
        (
            '[[proxies]]\nname = "ab"\n[[proxies]]\nname = "ab"',
            "proxies[1].name must differ from the others; found 'ab' again",
        ),
        (
            '[[proxies]]\nname = "ab"\nendpont = "x"',
            "proxies[0].endpont is not an option (did you mean endpoint?)",
        ),
        ('[[proxies]]\nname = "ab"\nhttp = 1', "proxies[0].http must be a table; found 1"),
        ("[client.proxy.conect]", "client.proxy.conect is not an option"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(write(tmp_path, text))


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://user:password@a.example/",
        "ftp://a.example/",
        "//a.example",
        "https://",
        "https://a.example/#x",
        "https://a.example/a b",
        "https://a.example\\@b.example/",
        "grpc://a.example:9000",
    ],
)
def test_an_endpoint_that_is_none(tmp_path: Path, endpoint: str) -> None:
    told = refusal(write(tmp_path, f"[client.proxy.connect]\nendpoint = '{endpoint}'"))
    assert "client.proxy.connect.endpoint must be an address such as" in told


@pytest.mark.parametrize(
    "transforms",
    [
        "[1]",
        "[{ status_code = 404 }]",
        "[{ status_code = 42, to_error = { code = 404, message = 'a' } }]",
        "[{ status_code = 404, to_error = { code = '404', message = 'a' } }]",
        "[{ status_code = 404, to_error = { code = 404, message = 'a', more = 1 } }]",
        (
            "[{ status_code = 404, to_error = { code = 404, message = 'a' }, to_disconnect = "
            "{ code = 4500, reason = 'a' } }]"
        ),
        "[{ status_code = 404, to_disconnect = { code = 4500 } }]",
    ],
)
def test_transforms_that_are_none(tmp_path: Path, transforms: str) -> None:
    text = f"{CONNECT}http.status_to_code_transforms = {transforms}"
    assert "http.status_to_code_transforms must be a list of tables" in refusal(
        write(tmp_path, text)
    )


def test_for_what_a_request_is_signed() -> None:
    assert aws_service("https://abc123.lambda-url.eu-central-1.on.aws/x?y") == (
        "lambda",
        "eu-central-1",
    )
    assert aws_service("https://a1.execute-api.us-east-1.amazonaws.com/prod/hook") == (
        "execute-api",
        "us-east-1",
    )
    for other in (
        "http://abc123.lambda-url.eu-central-1.on.aws/",
        "https://evil.example/abc.lambda-url.eu-central-1.on.aws",
        "https://abc123.lambda-url.eu-central-1.on.aws.evil.example/",
        "https://abc123.lambda-url.eu-central-1.on.aws:8443/",
    ):
        assert aws_service(other) is None
