"""The pages docs/recipes/from-….md: what they have under "After", as it stands there, from an
empty folder and before one `roomcast dev` whose configuration is made of theirs.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from asyncio.subprocess import Process
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.config import ConfigError, load
from tests.acceptance.conftest import running
from tests.acceptance.link import Link
from tests.acceptance.peers import PyPeer, Refused
from tests.acceptance.roomcast import Aws, Dev, emulator, environment, roomcast
from tests.acceptance.servers import listening, started
from tests.acceptance.snippets import marked
from tests.requirements import JS_DIRECTORY

TEST: Final = "test_recipe_migrations.py"
# By page: the files that it shows under "After", with their languages.
FILES: Final[Mapping[str, Mapping[str, str]]] = {
    "socket-io": {"server.mjs": "js", "client.mjs": "js", "announce.mjs": "js"},
    "channels": {"talk_site.py": "python", "notify.py": "python", "client.mjs": "js"},
    "api-gateway": {
        "make_queue.py": "python",
        "handler.py": "python",
        "make_token.py": "python",
        "client.mjs": "js",
    },
    "appsync-events": {"scores.py": "python", "client.mjs": "js"},
    "centrifugo": {"backend.py": "python", "client.mjs": "js"},
}
# As the pages have them: the addresses of `roomcast dev`.
URLS: Final = ("127.0.0.1:8000", "127.0.0.1:8001")
# What the pages export.
ENVIRONMENT: Final = {
    **environment(),
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "PYTHONUNBUFFERED": "1",
}
# Longer than the pause of a consumer whose queue was not there yet.
LINE_S: Final = 40.0
END_S: Final = 30.0


def page_of(name: str) -> str:
    return f"docs/recipes/from-{name}.md"


def merged(configurations: Sequence[str]) -> str:
    """One configuration of several: a table that two of them have alike is there once."""
    tables: list[str] = []
    for text in configurations:
        for table in re.split(r"^(?=\[)", text, flags=re.MULTILINE):
            stripped = table.strip()
            if stripped and (stripped not in tables or stripped.startswith("[[")):
                tables.append(stripped)
    return "\n\n".join(tables) + "\n"


@dataclass(frozen=True)
class Recipes:
    """What runs for all pages: `folders` have their files, with the addresses of here."""

    dev: Dev
    aws: Aws
    django: str
    folders: Mapping[str, Path]

    @staticmethod
    def config(folder: Path, page: str) -> str:
        """The path of the page's own configuration."""
        path = folder / "roomcast.toml"
        path.write_text(marked(page_of(page), f"{TEST} {page}", "toml"))
        return str(path)

    def script(self, page: str, name: str, *, at: str | None = None) -> str:
        """The path of a file, for a program that connects to `at` in place of the first node."""
        path = self.folders[page] / name
        if at is None:
            return str(path)
        first = self.dev.urls[0].removeprefix("http://")
        text = path.read_text()
        assert first in text
        elsewhere = path.with_name(f"elsewhere-{name}")
        elsewhere.write_text(text.replace(first, at))
        return str(elsewhere)


def at_home(folders: Mapping[str, Path], here: Mapping[str, str]) -> None:
    """The files with the addresses of `here` in place of those that are written."""
    for page, files in FILES.items():
        for name in files:
            path = folders[page] / name
            code = path.read_text()
            for written, actual in here.items():
                code = code.replace(written, actual)
            path.write_text(code)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, node: str) -> Iterator[Recipes]:
    """Everything that the pages show, running."""
    folders = {}
    for page, files in FILES.items():
        folders[page] = tmp_path_factory.mktemp(page)
        (folders[page] / "node_modules").symlink_to(JS_DIRECTORY / "node_modules")
        for name, language in files.items():
            (folders[page] / name).write_text(marked(page_of(page), f"{TEST} {name}", language))
    django = (sys.executable, "-m", "uvicorn", "talk_site:application", "--port", "0")
    with ExitStack() as stack:
        here = {
            written: "127.0.0.1:"
            + stack.enter_context(
                listening(
                    *command, folder=folders[page], said=said, environ={**ENVIRONMENT, "PORT": "0"}
                )
            )
            for written, page, command, said in (
                ("127.0.0.1:9001", "socket-io", (node, "server.mjs"), r"listening on (\d+)"),
                ("127.0.0.1:9002", "channels", django, r"running on http://127.0.0.1:(\d+)"),
            )
        }
        # What Centrifugo's back end does, Django does: it asks in the same format.
        here["127.0.0.1:9003/subscribe"] = f"{here['127.0.0.1:9002']}/roomcast/enter"
        here["127.0.0.1:4566"] = stack.enter_context(emulator()).removeprefix("http://")
        text = merged([marked(page_of(page), f"{TEST} {page}", "toml") for page in FILES])
        for written, actual in here.items():
            assert written in text
            text = text.replace(written, actual)
        config = tmp_path_factory.mktemp("roomcast") / "roomcast.toml"
        config.write_text(text)
        at_home(folders, here)
        aws = f"http://{here['127.0.0.1:4566']}"
        looked_at = Aws(aws)
        stack.callback(looked_at.close)
        looked_at.sqs.create_queue(QueueName="news")
        dev = stack.enter_context(running("--config", str(config), "--aws-endpoint", aws))
        subprocess.run(
            [sys.executable, "make_queue.py"],
            cwd=folders["api-gateway"],
            env=ENVIRONMENT,
            check=True,
            timeout=END_S,
        )
        nodes = [url.removeprefix("http://") for url in dev.urls]
        at_home(folders, dict(zip(URLS, nodes, strict=True)))
        yield Recipes(dev, looked_at, here["127.0.0.1:9002"], folders)


async def line_of(process: Process) -> str:
    """What `process` prints next."""
    assert process.stdout is not None, "asked for a pipe"
    async with asyncio.timeout(LINE_S):
        return (await process.stdout.readline()).decode().rstrip("\n")


async def prints(process: Process, *lines: str) -> None:
    """`process` prints exactly `lines` next."""
    for line in lines:
        assert await line_of(process) == line


async def output(*command: str, folder: Path) -> str:
    """What `command` prints, to its end."""
    async with (
        started(*command, folder=folder, environ=ENVIRONMENT) as process,
        asyncio.timeout(END_S),
    ):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()


async def test_socket_io(recipes: Recipes, node: str) -> None:
    folder = recipes.folders["socket-io"]
    expected = marked(page_of("socket-io"), f"{TEST} client.mjs", "text").splitlines()

    async def announce(text: str, key: str) -> str:
        script = recipes.script("socket-io", "announce.mjs")
        return await output(node, script, text, key, folder=folder)

    async with Link(recipes.dev.ws_urls[0]) as link:
        way = link.url.removeprefix("ws://").partition("/")[0]
        script = recipes.script("socket-io", "client.mjs", at=way)
        async with started(node, script, folder=folder, environ=ENVIRONMENT) as client:
            await prints(client, *expected[:3])
            said = await announce("closing at six", "notice-1")
            await prints(client, expected[3])
            # Once more: it is there once.
            assert await announce("closing at six", "notice-1") == said
            # Said while the client is away, and read when it comes back, at the other node.
            link.cut()
            await announce("closed", "notice-2")
            link.mend(recipes.dev.ws_urls[1])
            await prints(client, "house closed")


async def test_channels(recipes: Recipes, node: str) -> None:
    folder = recipes.folders["channels"]
    expected = marked(page_of("channels"), f"{TEST} client.mjs", "text").splitlines()

    async def notify(text: str, key: str) -> str:
        return await output(sys.executable, "notify.py", "talk:garden", text, key, folder=folder)

    async with Link(recipes.dev.ws_urls[0]) as link:
        way = link.url.removeprefix("ws://").partition("/")[0]
        script = recipes.script("channels", "client.mjs", at=way)
        async with started(node, script, folder=folder, environ=ENVIRONMENT) as client:
            assert sorted([await line_of(client), await line_of(client)]) == sorted(expected[:2])
            assert await notify("closing at six", "notice-1") == "stored as 2\n"
            assert await line_of(client) == expected[2]
            link.cut()
            await notify("closed", "notice-2")
            link.mend(recipes.dev.ws_urls[1])
            assert await line_of(client) == "house closed"
    # Who is signed in is held to what the views allow; who is not, comes nowhere.
    async with aiohttp.ClientSession() as browser:
        async with browser.get(f"http://{recipes.django}/sign-in/bob") as response:
            cookie = f"sessionid={response.cookies['sessionid'].value}"
        async with browser.post(f"http://{recipes.django}/roomcast/say", json={}) as response:
            assert response.status == 403
    bob = PyPeer(recipes.dev.ws_urls[0], headers={"Cookie": cookie})
    await bob.connect()
    await bob.subscribe("talk:garden")
    for channel, data, code in (("garden", {"no": 1}, 422), ("board", {"text": "hi"}, 403)):
        with pytest.raises(Refused) as refused:
            await bob.publish(f"talk:{channel}", data)
        assert refused.value.code == code
    await bob.close()
    stranger = PyPeer(recipes.dev.ws_urls[0])
    await stranger.call("connect")
    assert (await stranger.event("disconnected"))["code"] == 4501
    await stranger.close()


async def test_api_gateway(recipes: Recipes, node: str) -> None:
    folder = recipes.folders["api-gateway"]
    expected = marked(page_of("api-gateway"), f"{TEST} client.mjs", "text").splitlines()
    token = (await output(sys.executable, "make_token.py", "ann", folder=folder)).strip()

    async def invoke(state: str, times: int = 1) -> None:
        event = {"order": 7, "state": state}
        code = f"import handler\nfor _ in range({times}): handler.handler({event}, None)"
        await output(sys.executable, "-c", code, folder=folder)

    async with Link(recipes.dev.ws_urls[0]) as link:
        way = link.url.removeprefix("ws://").partition("/")[0]
        script = recipes.script("api-gateway", "client.mjs", at=way)
        async with started(node, script, token, folder=folder, environ=ENVIRONMENT) as client:
            await prints(client, *expected[:2])
            await invoke("paid", times=2)
            await prints(client, expected[2])
            link.cut()
            await invoke("sent")
            link.mend(recipes.dev.ws_urls[1])
            # The second "paid" would stand before it.
            await prints(client, '{"order":7,"state":"sent"}')


async def test_appsync_events(recipes: Recipes, node: str) -> None:
    folder = recipes.folders["appsync-events"]
    expected = marked(page_of("appsync-events"), f"{TEST} client.mjs", "text").splitlines()
    config = recipes.config(folder, "appsync-events")
    token = roomcast("token", "--config", config, "--user", "ann").stdout.strip()

    async def score(*events: str) -> str:
        return await output(sys.executable, "scores.py", "scores:42", *events, folder=folder)

    assert await score('{"home": 1}', '{"home": 1, "away": 1}') == "1 2\n"
    async with Link(recipes.dev.ws_urls[0]) as link:
        way = link.url.removeprefix("ws://").partition("/")[0]
        script = recipes.script("appsync-events", "client.mjs", at=way)
        async with started(node, script, token, folder=folder, environ=ENVIRONMENT) as client:
            await prints(client, *expected[:3])
            await score('{"home": 2, "away": 1}')
            await prints(client, expected[3])
            link.cut()
            await score('{"home": 2, "away": 2}')
            link.mend(recipes.dev.ws_urls[1])
            await prints(client, '4 {"home":2,"away":2}')


def leaves(found: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all options; tables of a list are told apart by their names."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from leaves(value, f"{place}.{key}" if place else key)
    elif isinstance(found, list) and found and isinstance(found[0], dict):
        for table in found:
            yield from leaves(table, f"{place}[{table['name']}]")
    else:
        yield place, found


def test_the_options_of_centrifugo(tmp_path: Path) -> None:
    page = page_of("centrifugo")
    theirs = dict(leaves(json.loads(marked(page, f"{TEST} centrifugo.json", "json"))))
    text = marked(page, f"{TEST} centrifugo", "toml")
    ours = dict(leaves(tomllib.loads(text)))
    left = [path for path in theirs if path not in ours or ours[path] != theirs[path]]
    assert left == marked(page, f"{TEST} centrifugo", "text").splitlines()

    path = tmp_path / "roomcast.toml"
    path.write_text(text)
    checked = roomcast("checkconfig", "--config", str(path))
    assert (checked.returncode, checked.stderr) == (0, "")
    path.write_text(text + marked(page, f"{TEST} leftover", "toml"))
    refused = roomcast("checkconfig", "--config", str(path))
    assert refused.returncode == 2
    assert "engine" in refused.stderr
    # None of those that the page names is passed over.
    for name in left:
        table, _, key = name.rpartition(".")
        path.write_text(f"[{table}]\n{key} = {json.dumps(theirs[name])}\n")
        with pytest.raises(ConfigError):
            load(path, {})


async def test_centrifugo(recipes: Recipes, node: str) -> None:
    folder = recipes.folders["centrifugo"]
    expected = marked(page_of("centrifugo"), f"{TEST} client.mjs", "text").splitlines()
    config = recipes.config(folder, "centrifugo")
    token = roomcast("token", "--config", config, "--user", "ann").stdout.strip()

    async with started(node, "client.mjs", token, folder=folder, environ=ENVIRONMENT) as client:
        await prints(client, expected[0])
        await output(sys.executable, "backend.py", folder=folder)
        await prints(client, expected[1])
    # Its proxy is asked, and its queue is read.
    ann = PyPeer(recipes.dev.ws_urls[1], token)
    await ann.connect()
    await ann.call("subscribe", channel="team:board")
    assert (await ann.event("unsubscribed", channel="team:board"))["code"] == 403
    await ann.subscribe("chat:lobby")
    recipes.aws.sqs.send_message(
        QueueUrl=recipes.aws.sqs.get_queue_url(QueueName="news")["QueueUrl"],
        MessageBody='{"method": "publish", "payload": {"channel": "chat:lobby", "data": "news"}}',
    )
    await ann.event("publication", channel="chat:lobby", data="news")
    await ann.close()
