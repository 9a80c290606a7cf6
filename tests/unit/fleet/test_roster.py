"""service/roomcast/fleet/roster.py: who is found by what."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from roomcast.fleet.order_signals import Target
from roomcast.fleet.roster import Roster


@dataclass(frozen=True, eq=False)
class Connection:
    client: str
    user: str
    session_name: str = ""


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from("1234"), st.sampled_from(["", "ann", "bob"])),
        max_size=30,
    )
)
def test_the_roster_has_who_came_and_did_not_leave(moves: list[tuple[bool, str, str]]) -> None:
    roster: Roster[Connection] = Roster()
    there: dict[str, Connection] = {}
    for comes, client, user in moves:
        if comes and client not in there:
            there[client] = Connection(client, user)
            roster.enter(there[client])
        elif not comes and client in there:
            gone = there.pop(client)
            roster.leave(gone)
            roster.leave(gone)
    assert len(roster) == len(there)
    assert roster.users == len({each.user for each in there.values()})
    for user in ("", "ann", "bob"):
        expected = [each for each in there.values() if each.user == user]
        assert set(roster.find(Target(user))) == set(expected)
        assert roster.find(Target(user, session="s")) == []
    for client in "1234":
        found = [each for each in there.values() if each.client == client]
        assert roster.find(Target(None, client)) == found
        for user in ("", "ann"):
            assert roster.find(Target(user, client)) == [
                each for each in found if each.user == user
            ]
    assert roster._by_user.keys() == {each.user for each in there.values()}, (
        "nothing is left behind"
    )


def test_who_never_entered_takes_nobody_out() -> None:
    roster: Roster[Connection] = Roster()
    ann = Connection("1", "ann")
    roster.enter(ann)
    roster.leave(Connection("1", "ann"))
    roster.leave(Connection("2", "bob"))
    assert roster.find(Target("ann")) == [ann]


def test_a_session_is_found_and_no_other_connection_of_its_user() -> None:
    roster: Roster[Connection] = Roster()
    stream, socket = Connection("1", "ann", "secret"), Connection("2", "ann")
    for each in (stream, socket):
        roster.enter(each)
    assert roster.find(Target("ann", session="secret")) == [stream]
    assert roster.find(Target("ann", "1", "secret")) == [stream]
    assert roster.find(Target("ann", "2", "secret")) == []
    assert roster.find(Target("bob", session="secret")) == []
    assert roster.find(Target("ann")) == [stream, socket]
