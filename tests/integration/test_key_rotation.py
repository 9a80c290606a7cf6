"""A rotation of both keys of tokens under load, instance by instance: no token is refused.

The new configuration also lets a user have one connection alone, across instances.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from roomcast.auth.verifier import sign_connection, sign_subscription
from tests.integration.serving import Process, deployed
from tests.websocket import WebSocket

OLD: Final = "an old secret of the tests, long enough to be no warning"
NEW: Final = "a new secret of the tests, long enough to be no warning"
# Subscription tokens have keys of their own.
OLD_SUBS, NEW_SUBS = f"subscriptions: {OLD}", f"subscriptions: {NEW}"
CLIENTS: Final = 4
# Connections of each client that the test waits for in each step.
ROUNDS: Final = 5
CONFIG: Final = """
[client.token]
hmac_secret_key = "{key}"
{previous}
[client.subscription_token]
enabled = true
hmac_secret_key = "{subs_key}"
{subs_previous}
[client]
subscribe_to_user_personal_channel = true
user_personal_single_connection = {alone}
[node]
drain_s = 0
"""


def previous(key: str, valid_until: int = 0) -> str:
    return (
        f'hmac_previous_secret_key = "{key}"\nhmac_previous_secret_key_valid_until = {valid_until}'
    )


@dataclass(slots=True)
class Load:
    """Clients that connect and subscribe all the time, each with fresh tokens.

    `targets`: what a load balancer would choose from. `keys`: what the back end signs with.
    """

    session: aiohttp.ClientSession
    targets: list[Process]
    keys: tuple[str, str]
    good: int = 0
    refused: list[object] = field(default_factory=list)
    stopped: bool = False
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, number: int) -> None:
        turn = number
        while not self.stopped:
            turn += 1
            process = self.targets[turn % len(self.targets)]
            try:
                await self._come(process)
            except (aiohttp.ClientError, OSError) as error:
                # Cut off with an instance that ends, which is no refusal.
                if process in self.targets:
                    self.refused.append((process.node, error))

    async def _come(self, process: Process) -> None:
        (key, subs_key), user = self.keys, f"user-{self.good}-{id(asyncio.current_task())}"
        token = sign_subscription(user, "$room", subs_key, 600)
        async with self.session.ws_connect(f"{process.url}/connection/websocket") as response:
            socket = WebSocket(response)
            try:
                answers = [
                    await socket.ask("connect", token=sign_connection(user, key, 600)),
                    await socket.ask("subscribe", channel="$room", token=token),
                    await socket.ask("refresh", token=sign_connection(user, key, 600)),
                ]
            except AssertionError:
                # Closed by the server.
                answers = [] if response.close_code in (1006, 3001) else [response.close_code]
            # A number is the code of an error.
            if any(isinstance(answer, int) for answer in answers):
                self.refused.append((process.node, answers))
            self.good += 1
            self.came.set()

    async def some(self) -> None:
        """As many as each client needs to have met every instance."""
        wanted = self.good + ROUNDS * CLIENTS * len(self.targets)
        async with asyncio.timeout(30):
            while self.good < wanted and not self.refused:
                await self.came.wait()
                self.came.clear()


async def test_no_token_is_refused_while_keys_are_rotated(tmp_path: Path) -> None:
    with deployed(tmp_path, "rotate-") as aws, ExitStack() as stack:

        def configured(name: str, key: str, subs: str, old: str = "", old_subs: str = "") -> Path:
            text = CONFIG.format(
                key=key,
                subs_key=subs,
                previous=old,
                subs_previous=old_subs,
                alone="true" if old else "false",
            )
            return aws.config(name, text)

        def started(config: Path) -> Process:
            process = Process(config, "--port", "0")
            stack.callback(process.close)
            return process

        before = configured("before", OLD, OLD_SUBS)
        both = configured("both", NEW, NEW_SUBS, previous(OLD), previous(OLD_SUBS))
        ended = int(time.time()) - 1
        after = configured("after", NEW, NEW_SUBS, previous(OLD, ended), previous(OLD_SUBS, ended))
        # All start at once, because most of a start is waiting.
        first, second, last = (
            [started(config) for config in configs]
            for configs in ((before, before), (both, both), (after,))
        )
        for process in (*first, *second, *last):
            await asyncio.to_thread(process.ready)
        async with aiohttp.ClientSession() as session:
            load = Load(session, list(first), (OLD, OLD_SUBS))
            clients = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
            await load.some()
            # Instance by instance gets the new keys. The back end still signs with the old ones.
            for index, (old, new) in enumerate(zip(first, second, strict=True)):
                load.targets[index] = new
                await load.some()
                old.signal()
                assert await asyncio.to_thread(old.ended) == 0
            # Then the back end goes over to the new ones.
            load.keys = (NEW, NEW_SUBS)
            await load.some()
            await _newest_alone(session, *second)
            # The old ones end.
            load.targets[:] = last
            await load.some()
            load.stopped = True
            await asyncio.gather(*clients)
            assert load.refused == []
            # Whoever still has a token of the old key is told to fetch another one.
            async with session.ws_connect(f"{last[0].url}/connection/websocket") as response:
                late = WebSocket(response)
                assert await late.ask("connect", token=sign_connection("ann", OLD, 600)) == 109
            async with session.ws_connect(f"{last[0].url}/connection/websocket") as response:
                late = WebSocket(response)
                await late.ask("connect", token=sign_connection("ann", NEW, 600))
                token = sign_subscription("ann", "$room", OLD_SUBS, 600)
                assert await late.ask("subscribe", channel="$room", token=token) == 109
        for process in (*second, *last):
            process.signal()
        for process in (*second, *last):
            assert await asyncio.to_thread(process.ended) == 0
            for key in (OLD, NEW):
                assert key not in process.log


async def _newest_alone(session: aiohttp.ClientSession, here: Process, there: Process) -> None:
    """A user's connection at one instance closes the one at another."""
    token = sign_connection("ann", NEW, 600)
    async with (
        session.ws_connect(f"{here.url}/connection/websocket") as first,
        session.ws_connect(f"{there.url}/connection/websocket") as second,
    ):
        older, newer = WebSocket(first), WebSocket(second)
        assert (await older.ask("connect", token=token))["client"]
        assert (await newer.ask("connect", token=token))["client"]
        assert await older.closed() == 3504
        assert await newer.ask("presence_stats", channel="#ann") == 108
