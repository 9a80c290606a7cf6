"""Whatever comes for a stream, as a request, in its first commands or through the mailbox: an
answer or an end, no fault of ours, and everybody else is served.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Hashable, Iterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import pytest

from roomcast.fleet.emulation import Emulation
from roomcast.wire.codes import Disconnect, Error
from tests.protobuf import command, read_messages
from tests.security.mutator import (
    NAMES,
    Mutator,
    commands,
    emulations,
    json_frames,
    mailbox_messages,
    protobuf_frames,
)
from tests.security.target import DEADLINE_S, HOST, Target, target, watched
from tests.unit.worlds import settled

SEED: Final = 65_007
MUTANTS: Final = 1400
OPENINGS: Final = 400
FORGERIES: Final = 1500
# Every so many mutants are of the request itself, and the others of the commands in it.
OF_THE_REQUEST_EVERY: Final = 4
# Outcomes that differ. Fewer mean that the mutants do not get past the parsers.
OUTCOMES_MIN: Final = 12
# A body comes in so many pieces at most.
PIECES_MAX: Final = 12
CODES: Final = {each.value.code for each in Error}
CLOSES: Final = {each.value.code for each in Disconnect}
# Whatever is answered to a request that is none. 5xx is none of them.
STATUSES: Final = {
    HTTPStatus.NO_CONTENT,
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.TOO_MANY_REQUESTS,
}
HTTP_STREAM, SSE, EMULATION = "/connection/http_stream", "/connection/sse", "/emulation"
JSON, BINARY = "application/json", "application/octet-stream"
# The id of the command behind a mutant, whose answer says that the mutant was read to its end.
FENCE: Final = 4_000_000


class Attacker:
    """Has a stream, and another one when that was ended."""

    def __init__(self, attacked: Target, *, protobuf: bool) -> None:
        self.attacked = attacked
        self.protobuf = protobuf
        self.streams = 0
        self.session = ""
        self._numbers = itertools.count(FENCE)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def say(self, body: bytes) -> Hashable:
        """What came of a request with this body."""
        if self._reader is None:
            await self._open()
        status = await self._post(NAMES.put_in(body, session=self.session))
        assert status in STATUSES, (body, status)
        number = next(self._numbers)
        frame = self._encoded({"id": number, "rpc": {"method": "none", "data": 1}})
        behind = emulations([frame], protobuf=self.protobuf)[0]
        await self._post(NAMES.put_in(behind, session=self.session))
        return frozenset({status, *await self._came(number)})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _open(self) -> None:
        self.streams += 1
        said = {"id": 1, "connect": {"token": self.attacked.token()}}
        body = self._encoded(said)
        kind = BINARY if self.protobuf else JSON
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.attacked.port)
        self._writer.write(
            (
                f"POST {HTTP_STREAM} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body
        )
        async with asyncio.timeout(DEADLINE_S):
            await self._reader.readuntil(b"\r\n\r\n")
            line = await self._line()
            assert line is not None
            self.session = line["connect"]["session"]

    def _encoded(self, said: dict[str, Any]) -> bytes:
        return command(said) if self.protobuf else json.dumps(said).encode()

    async def _post(self, body: bytes) -> int:
        kind = BINARY if self.protobuf else JSON
        async with self.attacked.session.post(
            self.attacked.url + EMULATION, data=body, headers={"Content-Type": kind}
        ) as answer:
            return answer.status

    async def _came(self, number: int) -> set[Hashable]:
        """What came before the answer to command `number`, or the end of the stream."""
        came: set[Hashable] = set()
        async with asyncio.timeout(DEADLINE_S):
            while (line := await self._line()) is not None:
                if line.get("id") == number:
                    return came
                came.add(_shape(line))
        self.close()
        return came

    async def _line(self) -> dict[str, Any] | None:
        """None: the stream ended."""
        assert self._reader is not None
        if not self.protobuf:
            text = await self._reader.readline()
            return json.loads(text) if text else None
        length = b""
        while not length or length[-1] & 0x80:
            if not (byte := await self._reader.read(1)):
                return None
            length += byte
        size = sum((byte & 0x7F) << 7 * at for at, byte in enumerate(length))
        [message] = read_messages(length + await self._reader.readexactly(size))
        return message


def _shape(line: dict[str, Any]) -> Hashable:
    """What a line says, without whatever differs from one time to the next."""
    if "push" in line:
        if "disconnect" in line["push"]:
            assert line["push"]["disconnect"]["code"] in CLOSES, line
            return ("end", line["push"]["disconnect"]["code"])
        return ("push", *sorted(line["push"].keys() - {"channel", "id"}))
    if "error" in line:
        assert line["error"]["code"] in CODES, line
        return ("error", line["error"]["code"])
    return tuple(sorted(line.keys() - {"id"}))


def _frames(attacked: Target, *, protobuf: bool) -> list[bytes]:
    said = commands(attacked.token(), attacked.subscription_token("$private"))
    return (protobuf_frames if protobuf else json_frames)(said)


@asynccontextmanager
async def _tolerant() -> Any:
    """A target without rates, which this many commands would meet."""
    async with target(command_rate_limit=0.0, publish_rate_limit=0.0) as attacked:
        yield attacked


# ---- requests with commands


@pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])
async def test_mutated_requests_are_taken_or_refused(protobuf: bool) -> None:
    """Both what is around the commands and the commands themselves."""
    with watched() as logs:
        async with _tolerant() as attacked:
            inner = Mutator(_frames(attacked, protobuf=protobuf), SEED)
            outer = Mutator(emulations(inner.corpus[:8], protobuf=protobuf), SEED)
            attacker = Attacker(attacked, protobuf=protobuf)
            for number in range(MUTANTS):
                if number % OF_THE_REQUEST_EVERY:
                    frame = inner.mutant()
                    [body, *_] = emulations([frame], protobuf=protobuf)
                    inner.learn(frame, await attacker.say(body))
                else:
                    body = outer.mutant()
                    outer.learn(body, await attacker.say(body))
            attacker.close()
            emulation = attacked.node.assembly.node.emulation
            _is_at_rest(emulation)
            await attacked.still_serves()
            assert len(emulation.sessions) == 0
    assert logs.faults() == []
    outcomes = {each for mutator in (inner, outer) for one in mutator.outcomes for each in one}  # type: ignore[attr-defined]
    assert {HTTPStatus.NO_CONTENT, HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND} <= outcomes
    assert ("end", Disconnect.BAD_REQUEST.value.code) in outcomes
    assert ("push", "pub") in outcomes
    assert len([each for each in outcomes if isinstance(each, tuple)]) >= OUTCOMES_MIN
    # Some streams outlived several of them.
    assert attacker.streams < MUTANTS * 0.9


def _is_at_rest(emulation: Emulation) -> None:
    assert not emulation._lanes
    assert not emulation._asking._asked
    assert not emulation._waiting_bytes


# ---- the first commands of a stream


async def _opening(attacked: Target, pieces: Iterator[bytes]) -> Hashable:
    """What comes of a request that is sent in pieces, once its client says no more: the status,
    and what a stream that it opened said.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        await settled()
        if not writer.transport.is_closing():
            # The system may know already that it was let go.
            with suppress(OSError):
                writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            answer = await reader.read()
    except ConnectionError:
        # It was let go before it had said all.
        return "reset"
    finally:
        writer.transport.abort()
    if not answer:
        return "ended"
    status = int(answer.split(b" ", 2)[1])
    assert status in STATUSES | {HTTPStatus.OK}, (answer, status)
    if status != HTTPStatus.OK:
        return status
    head, _, stream = answer.partition(b"\r\n\r\n")
    if BINARY.encode() in head:
        return frozenset({status, *map(_shape, read_messages(stream))})
    lines = (line.removeprefix(b"data: ") for line in stream.splitlines())
    return frozenset({status, *(_shape(json.loads(line)) for line in lines if line)})


async def _openings(attacked: Target, mutator: Mutator, pieces: Any) -> None:
    for frame in list(mutator.corpus):
        mutator.learn(frame, await _opening(attacked, pieces(frame)))
    for _ in range(OPENINGS):
        mutant = mutator.mutant()
        mutator.learn(mutant, await _opening(attacked, pieces(mutant)))
    await attacked.still_serves()


async def test_mutated_queries_open_a_stream_or_none() -> None:
    """Half of them as a query has them, and half with every byte as it is."""

    def query(frame: bytes) -> Iterator[bytes]:
        is_quoted = chance.random() < 0.5
        said = quote(frame).encode() if is_quoted else frame.translate(None, b"\r\n \x00")
        yield b"GET " + SSE.encode() + b"?" + chance.choice(parameters) + said + b" HTTP/1.1\r\n"
        yield f"Host: {HOST}\r\n\r\n".encode()

    parameters = (*[b"cf_connect="] * 8, b"cf_connect=&x=", b"=", b"", b"cf_connect=%&cf_connect=")
    chance = random.Random(SEED)
    with watched() as logs:
        async with _tolerant() as attacked:
            mutator = Mutator(_frames(attacked, protobuf=False), SEED)
            await _openings(attacked, mutator, query)
    assert logs.faults() == []
    assert HTTPStatus.BAD_REQUEST in mutator.outcomes
    opened = {each for each in mutator.outcomes if isinstance(each, frozenset)}
    assert any(("connect",) in each for each in opened)
    assert frozenset({HTTPStatus.OK, ("end", Disconnect.BAD_REQUEST.value.code)}) in opened


@pytest.mark.parametrize("kind", [JSON, BINARY])
async def test_mutated_bodies_in_pieces_open_a_stream_or_none(kind: str) -> None:
    """Some are shorter than they say, and some longer. A third come in chunks."""

    def head(length: str) -> bytes:
        fields = f"Host: {HOST}\r\nContent-Type: {kind}\r\n{length}"
        return f"POST {HTTP_STREAM} HTTP/1.1\r\n{fields}\r\n\r\n".encode()

    def pieces(frame: bytes) -> Iterator[bytes]:
        ends = sorted(chance.randrange(len(frame) + 1) for _ in range(chance.randrange(PIECES_MAX)))
        for begin, end in itertools.pairwise((0, *ends, len(frame))):
            yield frame[begin:end]

    def body(frame: bytes) -> Iterator[bytes]:
        if chance.randrange(3):
            size = max(0, len(frame) + chance.choice((0, 0, 0, 0, -1, 1, -100, 100_000)))
            yield head(f"Content-Length: {size}")
            yield from pieces(frame)
            return
        yield head("Transfer-Encoding: chunked")
        for piece in filter(None, pieces(frame)):
            size = len(piece) + chance.choice((*[0] * 40, 1, 1_000_000))
            yield b"%x\r\n%s\r\n" % (size, piece)
        yield chance.choice((*[b"0\r\n\r\n"] * 4, b"0\r\nX: y\r\n\r\n", b"", b"x\r\n"))

    chance = random.Random(SEED)
    with watched() as logs:
        async with _tolerant() as attacked:
            mutator = Mutator(_frames(attacked, protobuf=kind == BINARY), SEED)
            await _openings(attacked, mutator, body)
            assert attacked.streams._coming.used == 0
    assert logs.faults() == []
    assert {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE} <= mutator.outcomes
    opened = {each for each in mutator.outcomes if isinstance(each, frozenset)}
    assert any(("connect",) in each for each in opened)
    assert any(("end", Disconnect.BAD_REQUEST.value.code) in each for each in opened)


# ---- what comes through the mailbox


async def test_forged_messages_of_the_mailbox_reach_nobody_or_a_session() -> None:
    """Whoever can write into the queue, and has no session: he may cost answers, and no more. With
    a session he is the client.
    """
    with watched() as logs:
        async with _tolerant() as attacked:
            assembly = attacked.node.assembly
            emulation, intake = assembly.node.emulation, assembly.intake
            attacker = Attacker(attacked, protobuf=False)
            mutator = Mutator(mailbox_messages(_frames(attacked, protobuf=False)[:8]), SEED)
            numbers = itertools.count()
            before = dict(emulation.counters.for_others), intake.malformed
            for mutant in [*mutator.corpus, *(mutator.mutant() for _ in range(FORGERIES))]:
                if attacker._reader is None:
                    await attacker._open()
                # One whose id came before would be taken for a repeat.
                body = NAMES.put_in(mutant, session=attacker.session, number=next(numbers))
                intake.take([body.decode(errors="surrogateescape")])
                fence = next(attacker._numbers)
                [own, *_] = emulations(
                    [json.dumps({"id": fence, "rpc": {"method": "none"}}).encode()], protobuf=False
                )
                await attacker._post(NAMES.put_in(own, session=attacker.session))
                came = await attacker._came(fence)
                after = dict(emulation.counters.for_others), intake.malformed
                mutator.learn(mutant, (frozenset(came), _differs(before, after)))
                before = after
            attacker.close()
            await emulation.finish()
            _is_at_rest(emulation)
            assert not emulation._asking._answering
            await attacked.still_serves()
    assert logs.faults() == []
    for outcome in ("taken", "unknown", "malformed"):
        assert emulation.counters.for_others[outcome] > 10, outcome
    assert intake.malformed > 10
    assert len(mutator.outcomes) >= OUTCOMES_MIN


def _differs(before: Any, after: Any) -> Hashable:
    """Which numbers grew."""
    grew = {name for name, number in after[0].items() if number > before[0][name]}
    return (frozenset(grew), after[1] > before[1])
