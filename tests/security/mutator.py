"""Mutations of valid input, as a fuzzer makes them: the same for the same seed,
and a corpus that grows by what is new.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from roomcast.delivery.envelope import pack, signal_text
from roomcast.fleet.emulation_signals import Answer, Outcome, Posted, answer_signal, posted_signal
from roomcast.gateway.stream import new_session
from roomcast.wire.protobuf_schema import message_class
from tests.protobuf import command

__all__ = [
    "CORPUS_MAX",
    "MUTANT_BYTES_MAX",
    "NAMES",
    "Mutator",
    "commands",
    "emulations",
    "json_frames",
    "mailbox_messages",
    "protobuf_frames",
]

# Inputs that are kept to mutate further: what was found late must still be chosen now and then.
CORPUS_MAX: Final = 400
# A mutant that grew beyond it is cut: large frames have a test of their own.
MUTANT_BYTES_MAX: Final = 4096
# Mutations that are laid upon one another.
_STACKED_MAX: Final = 2

# What programs stumble over, in text and in numbers.
_TOKENS: Final = (
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"4294967295",
        b"4294967296",
        b"18446744073709551616",
        b"1e999",
        b"-0.0",
    ),
    *(
        b'""',
        b"[]",
        b"{}",
        b"{",
        b"}",
        b"[" * 300,
        b'{"a":' * 300,
        b'"',
        b"\\",
        b"\n",
        b"\r\n",
        b"\t",
        b",",
    ),
    *(
        b"\x00",
        b"\\u0000",
        b"\\ud800",
        b"\\u0001",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\xe2\x80\xae",
    ),
    *(
        b"#",
        b"$",
        b":",
        b",ann",
        b"__proto__",
        b"constructor",
        b"NaN",
        b"Infinity",
        b"%s",
        b"{0}",
        b"../",
    ),
    *(
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x80",
        b"\x7f",
        b"\x08\x00",
        b"\x0b",
        b"\x0c",
        b"\x3a\x00",
    ),
)
# Where a value stands in JSON, but that of an id, and what may stand there instead:
# the object stays one.
_VALUE: Final = re.compile(rb'(?<=[^d]": )("[^"]*"|-?\d+|true|false|null)')
_VALUES: Final = (
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"4294967296",
        b"18446744073709551616",
        b"1.5",
        b'""',
        b"[]",
        b"{}",
    ),
    *(
        b'"room"',
        b'"\\u0001x"',
        b'"\\ud800"',
        b'"a#ann"',
        b'"$p"',
        b'"no:where"',
        b'"' + b"x" * 300 + b'"',
    ),
)


_NO_COMMANDS: Final = (
    b"[1]",
    b'"connect"',
    b"5",
    b"true",
    b'{"id":1}',
    b'{"id":1,"connect":[]}',
    b'{"id":"1","ping":{}}',
    # Deeper than what can be written again, than one parser goes, and than the other.
    *(
        b'{"id":1,"publish":{"channel":"room","data":' + b"[" * deep + b"]" * deep + b"}}"
        for deep in (300, 800, 4000)
    ),
)


def commands(token: str, subscription_token: str) -> list[dict[str, Any]]:
    """One valid command of each kind and more, without ids;
    a client that has said them all has used all there is.
    """
    since = {"offset": 1, "epoch": "e"}
    return [
        {
            "connect": {
                "token": token,
                "name": "sdk",
                "version": "1",
                "data": {"a": [1, None, "é😀"]},
            }
        },
        {
            "connect": {
                "token": token,
                "subs": {"room": {"recover": True, "epoch": "e", "offset": 3}},
            }
        },
        {"subscribe": {"channel": "room"}},
        {"subscribe": {"channel": "plain:a", "flag": 1, "join_leave": True, "positioned": True}},
        {
            "subscribe": {
                "channel": "room",
                "recover": True,
                "recoverable": True,
                "epoch": "e",
                "offset": 7,
            }
        },
        {"subscribe": {"channel": "$private", "token": subscription_token, "data": {"x": 1}}},
        {"subscribe": {"channel": "dialogue#ann,bob", "delta": "fossil", "flag": 1}},
        {"unsubscribe": {"channel": "plain:a"}},
        {
            "publish": {
                "channel": "room",
                "data": {"text": "hello", "n": [1.5, -2, 1e300, True, None]},
            }
        },
        {"publish": {"channel": "plain:a", "data": "text"}},
        {"presence": {"channel": "room"}},
        {"presence_stats": {"channel": "room"}},
        {"history": {"channel": "room", "limit": 10, "reverse": True}},
        {"history": {"channel": "room", "limit": -1, "since": since}},
        {
            "rpc": {
                "method": "roomcast.publish",
                "data": {"channel": "room", "data": 1, "idempotency_key": "k"},
            }
        },
        {"rpc": {"method": "anything", "data": [1]}},
        {"subscribe": {"channel": "bin:a", "delta": "fossil"}},
        {"publish": {"channel": "bin:a", "data": "text"}},
        {"history": {"channel": "bin:a", "limit": -1}},
        {
            "rpc": {
                "method": "roomcast.publish",
                "data": {"channel": "bin:a", "b64data": "/wA=", "idempotency_key": "k"},
            }
        },
        {"refresh": {"token": token}},
        {"sub_refresh": {"channel": "$private", "token": subscription_token}},
        {"ping": {}},
        {"send": {"data": {"a": 1}}},
    ]


def _numbered(said: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each if "send" in each else {"id": at, **each} for at, each in enumerate(said, 1)]


def json_frames(said: Sequence[dict[str, Any]]) -> list[bytes]:
    """A text frame of each command, one of several, a pong, and JSON that is no command."""
    lines = [json.dumps(each).encode() for each in _numbered(said)]
    return [*lines, b"\n".join(lines[2:9]), b"{}", *_NO_COMMANDS]


def protobuf_frames(said: Sequence[dict[str, Any]]) -> list[bytes]:
    """The same as binary frames."""
    messages = [command(each) for each in _numbered(said)]
    return [*messages, b"".join(messages[2:9]), b"\x00"]


# Numbers with as many digits as that of _Names.
_NUMBERS_FROM: Final = 1_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class _Names:
    """What stands in a corpus for names that only the attacked node knows. Each is as long as what
    it stands for, whose length is in the message as well.
    """

    session: bytes = b"S" * len(new_session("0" * 8))
    id: bytes = b"N" * 16
    number: int = 2_222_222_222_222_222

    def put_in(self, mutant: bytes, *, session: str, number: int = 0) -> bytes:
        """The mutant with the session of a stream, and an id and a number of its own."""
        said = mutant.replace(self.session, session.encode())
        said = said.replace(b"%d" % self.number, b"%d" % (_NUMBERS_FROM + number))
        return said.replace(self.id, b"%0*d" % (len(self.id), number))


NAMES: Final = _Names()
# The id of the node that is attacked, and of one that is none.
_NODE, _NOBODY = "a", "z"


def emulations(frames: Sequence[bytes], *, protobuf: bool) -> list[bytes]:
    """Bodies of /emulation with each of `frames`, for the session of NAMES; then for others."""
    own = NAMES.session.decode()
    to = [(own, _NODE, frame) for frame in frames]
    to += [
        (own[:-1], _NODE, b"{}"),
        (own, _NOBODY, b"{}"),
        ("guessed", _NOBODY, b""),
        ("", "", b""),
    ]
    if protobuf:
        return [
            message_class("EmulationRequest")(
                node=node, session=session, data=frame
            ).SerializeToString()
            for session, node, frame in to
        ]
    return [
        json.dumps(
            {"session": session, "node": node, "data": frame.decode(errors="replace")}
        ).encode()
        for session, node, frame in to
    ]


def mailbox_messages(frames: Sequence[bytes]) -> list[bytes]:
    """Messages of the mailbox: commands, with `frames`, for the session of NAMES and for others,
    and answers. Each signal has the id and the number of NAMES.
    """
    own, its_id = NAMES.session.decode(), NAMES.id.decode()
    posted: list[tuple[str, tuple[bytes, ...]]] = [(own, (frame,)) for frame in frames]
    posted += [(own, tuple(frames)), ("guessed", (b"{}",)), (own, ())]
    signals = [
        posted_signal(_NOBODY, its_id, Posted(session, some, NAMES.number))
        for session, some in posted
    ]
    signals += [
        answer_signal(_NOBODY, its_id, asked, Answer(outcome, len(frames)))
        for outcome in Outcome
        for asked in (its_id, "another")
    ]
    bodies = [body for each in signals for body, _ in pack([signal_text(each)], signals=True)]
    # Written with spaces, as the values that a mutator replaces are looked for.
    return [json.dumps(json.loads(body)).encode() for body in bodies]


class Mutator:
    """Hands out mutants of its corpus; one that had an outcome unlike any
    before is mutated further.
    """

    def __init__(self, corpus: Sequence[bytes], seed: int) -> None:
        self.corpus = list(corpus)
        self.outcomes: set[Hashable] = set()
        self._random = random.Random(seed)

    def mutant(self) -> bytes:
        """Something nearly valid."""
        data = bytearray(self._random.choice(self.corpus))
        for _ in range(self._random.randint(1, _STACKED_MAX)):
            data = self._mutated(data)
        return bytes(data[:MUTANT_BYTES_MAX])

    def learn(self, mutant: bytes, outcome: Hashable) -> None:
        """What came of it."""
        if outcome not in self.outcomes:
            self.outcomes.add(outcome)
            if len(self.corpus) < CORPUS_MAX:
                self.corpus.append(mutant)

    def _mutated(self, data: bytearray) -> bytearray:
        pick = self._random
        at = pick.randint(0, len(data))
        end = min(len(data), at + pick.choice((1, 1, 2, 8, 64)))
        other = pick.choice(self.corpus)
        begin = pick.randint(0, len(other))
        match pick.randrange(18):
            case 0 if data:  # a bit
                where = pick.randrange(len(data))
                data[where] ^= 1 << pick.randrange(8)
            case 1:  # a token, in place of something or beside it
                data[at : pick.choice((at, end))] = pick.choice(_TOKENS)
            case 2:
                del data[at:end]
            case 3:  # said again
                data[at:at] = data[at:end] * pick.choice((1, 2, 20))
            case 4:  # crossed with another one
                data[at:] = other[begin:]
            case 5:  # with another one in its midst
                data[at:at] = other[begin : begin + 64]
            # Mostly what leaves the frame whole: others do not get past the parser.
            case kind if kind < 14 and (found := list(_VALUE.finditer(data))):
                value = pick.choice(found)
                data[value.start() : value.end()] = pick.choice(_VALUES)
            case _:
                data[at:end] = pick.randbytes(end - at)
        return data
