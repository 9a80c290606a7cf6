"""The short way of the calls that are made most: a client of the SDK without its middle.

A publication costs little beside its PutItem, and two thirds of the CPU of a PutItem through the
SDK go into copies, checks and look-ups that come out the same each time. The operations that a
`LeanClient` names take everything that may differ from the SDK, and skip the rest:

    taken from the SDK's client    endpoint, credentials and their renewal, signature, names of the
                                   headers, connections, time-outs, certificates, hooks
                                   (`before-send`, `after-call`), retries, parsing of errors
    done here                      parameters to JSON, the request itself, JSON to the answer

Parameters must be as they go over the wire: they are not checked, and nothing in them is converted.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_plus

import aiohttp
import orjson
from aiobotocore.parsers import create_parser
from botocore.auth import SigV4Auth
from botocore.exceptions import (
    BotoCoreError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from botocore.serialize import create_serializer
from yarl import URL

from roomcast.ports import UnknownOutcome

__all__ = ["ANSWER_BYTES_MAX", "LeanClient", "form_encoded"]

# The largest answers: a page of a Query has 1 MB of items, and JSON may write a byte as six. Ten
# messages of SNS have 2.5 MiB, and JSON may write a character of two bytes as six.
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
# The only signature that is made here. For another one the call goes through the SDK.
_SIGNATURE: Final = "v4"
_HTTP_REDIRECTS: Final = 300
_HTTP_ERRORS: Final = 400
_REQUEST_ID: Final = "x-amzn-requestid"
_JSON: Final = "json"
# What stands for itself in a form: RFC 3986 §2.3.
_SAFE: Final = (string.ascii_letters + string.digits + "-._~").encode()
_PERCENT, _SPACE = b"% "
# Kinds of other bytes that are replaced one after the other. JSON has some 20, and each letter
# beyond ASCII one or two more.
_KINDS_MAX: Final = 48
# RuntimeError: the clients were closed meanwhile.
_SENDING_ERRORS: Final = (aiohttp.ClientError, OSError, RuntimeError)


class LeanClient:
    """Stands for a client of the SDK. `methods` go the short way; all others are the client's own.

    `session` has the client's connections. No proxy may be configured.
    """

    def __init__(self, client: Any, session: aiohttp.ClientSession, methods: Sequence[str]) -> None:
        self._client = client
        for method in methods:
            setattr(self, method, _Operation(client, session, method).call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class _Signer(SigV4Auth):  # type: ignore[misc]  # the SDK has no types
    """The SDK's signer, over headers that are all to be signed, each of them once.

    The SDK's own copies headers into a message of e-mail, twice: a third of a signature.
    """

    def headers_to_sign(self, request: _Request) -> Mapping[str, str]:
        return {name.lower(): value for name, value in request.headers.items()}

    def canonical_headers(self, headers_to_sign: Mapping[str, str]) -> str:
        return "\n".join(
            f"{name}:{' '.join(headers_to_sign[name].split())}" for name in sorted(headers_to_sign)
        )

    def signed_headers(self, headers_to_sign: Mapping[str, str]) -> str:
        return ";".join(sorted(headers_to_sign))


@dataclass(slots=True)
class _Request:
    """What the SDK's signer reads and writes of a request."""

    url: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"
    params: Mapping[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Answer:
    """As much of an answer as the SDK's hooks read, with its body."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    async def content(self) -> bytes:
        """The body, of which DynamoDB's answers have a checksum."""
        return self.body

    def as_of_the_sdk(self, operation: str) -> dict[str, Any]:
        """What the SDK's parsers take."""
        return {
            "status_code": self.status_code,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.body,
            "context": {"operation_name": operation},
        }


@dataclass(frozen=True, slots=True)
class _Target:
    """Where requests go, as whose and for what they are signed, and the headers of all of them.

    `credentials`: for which it was found out, because an endpoint may have their account in it.
    """

    credentials: Any
    url: URL
    signed: Mapping[str, str]
    unsigned: Mapping[str, str]
    region: str
    service: str


class _Operation:
    """One operation of one client. It may be called again while a call is under way."""

    def __init__(self, client: Any, session: aiohttp.ClientSession, method: str) -> None:
        self._client = client
        self._session = session
        self._through_sdk = getattr(client, method)
        # What the SDK keeps to itself, and another release may name otherwise. No test of this
        # module passes without it.
        self._signer = client._request_signer  # noqa: SLF001
        self._needs_retry = client._endpoint._needs_retry  # noqa: SLF001
        self._resolve_endpoint = client._resolve_endpoint_ruleset  # noqa: SLF001
        self._user_agent = client._user_agent_creator  # noqa: SLF001
        self._model = client.meta.service_model.operation_model(
            client.meta.method_to_api_mapping[method]
        )
        service = self._model.service_model
        self._protocol: str = service.resolved_protocol
        self._serializer = create_serializer(self._protocol, include_validation=False)
        self._event = f"{service.service_id.hyphenize()}.{self._model.name}"
        self._target: _Target | None = None

    async def call(self, **params: Any) -> Any:
        """The answer's fields, and `ResponseMetadata` as the SDK has it.

        Raises what the SDK raises, and UnknownOutcome for a redirect and for an answer that is too
        large.
        """
        body, context, attempts = self._body(params), dict[str, Any](), 0
        while True:
            attempts += 1
            credentials = await self._credentials()
            target = await self._found(params, credentials)
            if target is None:
                return await self._through_sdk(**params)
            answered, failure = None, None
            try:
                answer = await self._sent(target, body)
            except _SENDING_ERRORS as error:
                failure = _as_of_the_sdk(error, str(target.url))
            else:
                parsed = await self._parsed(answer)
                if answer.status_code < _HTTP_REDIRECTS:
                    break
                answered = answer, parsed
            # Waits before it says yes.
            if not await self._needs_retry(
                attempts, self._model, {"context": context}, answered, failure
            ):
                break
        if failure is not None:
            raise failure
        await self._client.meta.events.emit(
            f"after-call.{self._event}",
            http_response=answer,
            parsed=parsed,
            model=self._model,
            context=context,
        )
        if answered is not None:
            code = context.get("error_code_override") or parsed.get("Error", {}).get("Code")
            raise self._client.exceptions.from_code(code)(parsed, self._model.name)
        return parsed

    async def _credentials(self) -> Any:
        """Those of this moment: the SDK renews them. None = none were found."""
        signer = self._signer
        auth = await signer.get_auth_instance(signer.signing_name, signer.region_name, _SIGNATURE)
        return auth.credentials

    async def _found(self, params: Mapping[str, Any], credentials: Any) -> _Target | None:
        """Where this operation goes. None: to be asked of the SDK each time."""
        if self._target is not None and self._target.credentials == credentials:
            return self._target
        context = {"client_config": self._client.meta.config}
        endpoint, more_headers, _ = await self._resolve_endpoint(self._model, params, context)
        signer, signing = self._signer, context.get("signing", {})
        if (context.get("auth_type") or signer.signature_version) != _SIGNATURE:
            return None
        usual = self._serializer.serialize_to_request({}, self._model)
        url = URL(endpoint.rstrip("/") + usual["url_path"], encoded=True)
        self._target = _Target(
            credentials=credentials,
            url=url,
            signed=usual["headers"] | more_headers | {"Host": url.host_port_subcomponent},
            unsigned={
                "User-Agent": self._user_agent.to_string(),
                "Accept-Encoding": "identity",
            },
            region=signing.get("region", signer.region_name),
            service=signing.get("signing_name", signer.signing_name),
        )
        return self._target

    def _body(self, params: Mapping[str, Any]) -> bytes:
        if self._protocol == _JSON:
            return json.dumps(params).encode()
        fields = self._serializer.serialize_to_request(params, self._model)["body"]
        return form_encoded(fields)

    async def _sent(self, target: _Target, body: bytes) -> _Answer:
        """One attempt. Raises aiohttp's errors, and UnknownOutcome."""
        request = _Request(str(target.url), dict(target.signed), body)
        _Signer(target.credentials, target.service, target.region).add_auth(request)
        await self._client.meta.events.emit(f"before-send.{self._event}", request=request)
        async with self._session.post(
            target.url,
            data=body,
            headers={**request.headers, **target.unsigned},
            allow_redirects=False,
        ) as response:
            if _HTTP_REDIRECTS <= response.status < _HTTP_ERRORS:
                raise UnknownOutcome("the answer is a redirect: it is none of AWS's")
            return _Answer(response.status, response.headers, await _read(response))

    async def _parsed(self, answer: _Answer) -> dict[str, Any]:
        """The fields of an answer. Raises ResponseParserError."""
        if self._protocol == _JSON and answer.status_code < _HTTP_REDIRECTS:
            return _fields(answer)
        parser, response = create_parser(self._protocol), answer.as_of_the_sdk(self._model.name)
        parsed: dict[str, Any] = await parser.parse(response, self._model.output_shape)
        code = parsed.get("Error", {}).get("Code")
        shape = self._model.service_model.shape_for_error_code(code) if code else None
        if shape is not None:
            # Such as the item that a condition failed for.
            parsed.update(await parser.parse(response, shape))
        return parsed


def form_encoded(fields: Mapping[str, Any]) -> bytes:
    """The bytes that the standard library makes of a form, in a sixth to a tenth of the time.

    The library looks at each character that it may have to quote, one after the other.
    """
    return b"&".join(
        b"%b=%b" % (_quoted(str(name)), _quoted(str(value))) for name, value in fields.items()
    )


def _quoted(text: str) -> bytes:
    encoded = text.encode()
    foreign = encoded.translate(None, _SAFE)
    if not foreign:
        return encoded
    kinds: list[int] = []
    while foreign:
        if len(kinds) == _KINDS_MAX:
            # A pass for each would take longer. It is text beyond ASCII.
            return quote_plus(encoded).encode()
        kinds.append(foreign[0])
        foreign = foreign.translate(None, foreign[:1])
    # Others bring percent signs, which come first therefore, and spaces become plus signs.
    for kind in sorted(kinds, key=lambda kind: (kind == _SPACE, kind != _PERCENT)):
        quoted = b"+" if kind == _SPACE else b"%%%02X" % kind
        encoded = encoded.replace(bytes((kind,)), quoted)
    return encoded


def _fields(answer: _Answer) -> dict[str, Any]:
    """Raises ResponseParserError for what is no JSON object."""
    try:
        fields = _decoded(answer.body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ResponseParserError(f"no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ResponseParserError("no JSON object")
    about: dict[str, Any] = {"HTTPStatusCode": answer.status_code}
    if request_id := answer.headers.get(_REQUEST_ID):
        about["RequestId"] = request_id
    # To the SDK, what is null is not there.
    present = {name: value for name, value in fields.items() if value is not None}
    return {**present, "ResponseMetadata": about}


def _decoded(text: bytes) -> Any:
    """The value of `text`. Raises ValueError and RecursionError.

    What the strict decoder refuses, the SDK's may take: numbers beyond a double, halves of
    characters.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body. Raises UnknownOutcome when it is longer than ANSWER_BYTES_MAX."""
    if response.content_length is not None and response.content_length <= ANSWER_BYTES_MAX:
        return await response.read()
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > ANSWER_BYTES_MAX:
            raise UnknownOutcome(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _as_of_the_sdk(error: Exception, url: str) -> BotoCoreError:
    """The error that the SDK's own session has for one of aiohttp's."""
    raised: BotoCoreError
    if isinstance(error, aiohttp.ClientSSLError):
        raised = SSLError(endpoint_url=url, error=error)
    elif isinstance(error, aiohttp.ConnectionTimeoutError):
        raised = ConnectTimeoutError(endpoint_url=url, error=error)
    elif isinstance(error, TimeoutError):
        raised = ReadTimeoutError(endpoint_url=url, error=error)
    elif isinstance(error, aiohttp.ClientConnectorError):
        raised = EndpointConnectionError(endpoint_url=url, error=error)
    else:
        raised = ConnectionClosedError(endpoint_url=url, error=error)
    raised.__cause__ = error
    return raised
