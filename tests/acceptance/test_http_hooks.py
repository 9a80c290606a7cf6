"""The examples of docs/http-hooks.md, as they stand there: Django, FastAPI and a Lambda decide what
clients of the published SDK may do; and an application's start and stop hooks around them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.acceptance.conftest import running
from tests.acceptance.peers import PyPeer, Refused
from tests.acceptance.roomcast import roomcast
from tests.acceptance.servers import listening
from tests.acceptance.snippets import marked
from tests.fakes.function_url import Handler, function_url

PAGE: Final = "docs/http-hooks.md"
TEST: Final = "test_http_hooks.py"

# In Python, beside the hooks over HTTP.
LIFE: Final = """
from pathlib import Path

SEEN = Path(__file__).with_name("seen.txt")


def note(word):
    with SEEN.open("a") as seen:
        seen.write(f"{word}\\n")


async def start():
    note("start")


async def stop():
    note("stop")
"""


@contextmanager
def uvicorn(directory: Path, app: str) -> Iterator[str]:
    """The address at which `app` is served."""
    command = (sys.executable, "-m", "uvicorn", app, "--port", "0", "--app-dir", str(directory))
    with listening(*command, folder=directory, said=r"running on http://([0-9.:]+)") as address:
        yield address


def quickened(code: str, *names: str) -> str:
    """`code`, whose checks come after a second instead of minutes."""
    for name in names:
        assert f"\n{name} = 300\n" in code
        code = code.replace(f"\n{name} = 300\n", f"\n{name} = 1\n")
    return code


def opened(url: str, cookie: str) -> PyPeer:
    """A client with a cookie, as a browser's has."""
    return PyPeer(url, headers={"Cookie": cookie})


def configured(directory: Path, text: str) -> str:
    path = directory / "roomcast.toml"
    path.write_text(
        f'{text}\n[hooks]\nstart = "life:start"\nstop = "life:stop"\ndirectory = "{directory}"\n'
    )
    return str(path)


def test_the_configuration_is_in_order(tmp_path: Path) -> None:
    (tmp_path / "life.py").write_text(LIFE)
    checked = roomcast("checkconfig", "--config", configured(tmp_path, marked(PAGE, TEST, "toml")))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "change-me" not in checked.stdout


async def test_the_examples(tmp_path: Path) -> None:
    site = quickened(marked(PAGE, f"{TEST} django", "python"), "SESSION_CHECK_S")
    rooms = quickened(marked(PAGE, f"{TEST} fastapi", "python"), "MEMBER_CHECK_S")
    (tmp_path / "chat_site.py").write_text(site)
    (tmp_path / "chat_rooms.py").write_text(rooms)
    (tmp_path / "life.py").write_text(LIFE)
    calls: dict[str, Any] = {}
    exec(compile(marked(PAGE, f"{TEST} lambda", "python"), "chat_calls.py", "exec"), calls)  # noqa: S102  # our own page
    handler: Handler = calls["handler"]
    seen = tmp_path / "seen.txt"

    with ExitStack() as stack:
        django = stack.enter_context(uvicorn(tmp_path, "chat_site:application"))
        fastapi = stack.enter_context(uvicorn(tmp_path, "chat_rooms:app"))
        async with function_url(handler) as url, aiohttp.ClientSession() as browser:
            text = marked(PAGE, TEST, "toml")
            for written, here in (
                ("127.0.0.1:9001", django),
                ("127.0.0.1:9002", fastapi),
                ("https://abc123.lambda-url.eu-central-1.on.aws/", url),
                ("aws_iam = true", ""),
            ):
                assert written in text
                text = text.replace(written, here)
            with running("--config", configured(tmp_path, text)) as dev:
                assert seen.read_text().split() == ["start", "start"]
                await _chat(dev.ws_urls, browser, f"http://{django}", f"http://{fastapi}")
    # Of both instances, after their clients were gone.
    assert seen.read_text().split() == ["start", "start", "stop", "stop"]


async def _chat(
    urls: list[str],
    browser: aiohttp.ClientSession,
    django: str,
    fastapi: str,
) -> None:
    async def cookie_of(user: str) -> str:
        async with browser.get(f"{django}/sign-in/{user}") as response:
            return f"sessionid={response.cookies['sessionid'].value}"

    ann_cookie = await cookie_of("ann")
    bob_cookie = await cookie_of("bob")

    # Django: who they are.
    stranger = opened(urls[0], "sessionid=none")
    await stranger.call("connect")
    assert (await stranger.event("disconnected"))["code"] == 4501
    ann = opened(urls[0], ann_cookie)
    await ann.connect()
    assert ann.events[-1]["data"] == {"hello": "ann", "by": "websocket"}
    bob = opened(urls[1], bob_cookie)
    await bob.connect()

    # FastAPI: which rooms they may enter, and what they may say there.
    assert (await ann.subscribe("team:garden"))["data"] == {"role": "owner"}
    assert (await bob.subscribe("team:garden"))["data"] == {"role": "guest"}
    await bob.call("subscribe", channel="team:board")
    assert (await bob.event("unsubscribed", channel="team:board"))["code"] == 403
    await bob.publish("team:garden", {"text": "  hello ", "more": 1})
    for each in (ann, bob):
        message = await each.event("publication", channel="team:garden", data={"text": "hello"})
        assert message["info"]["user"] == "bob"
        assert message["info"]["conn_info"] == {"name": "Bob"}
    with pytest.raises(Refused) as refused:
        await bob.publish("team:garden", {"text": " "})
    assert refused.value.code == 422

    # The Lambda: what they ask.
    assert await bob.rpc("rooms", {}) == ["team:garden"]
    with pytest.raises(Refused) as refused:
        await bob.rpc("doors", {})
    assert refused.value.code == 404

    # What was allowed lasts as long as it is: both were looked at again meanwhile.
    async with browser.post(
        f"{fastapi}/leave/team:garden/bob", headers={"X-Hook-Secret": "change-me"}
    ) as response:
        assert response.status == 200
    assert (await bob.event("unsubscribed", channel="team:garden"))["code"] == 403
    async with browser.get(f"{django}/sign-out", headers={"Cookie": bob_cookie}) as response:
        assert await response.text() == "goodbye"
    assert (await bob.event("disconnected"))["code"] == 4501
    assert await ann.rpc("rooms", {}) == ["team:board", "team:garden"]
    for each in (stranger, ann, bob):
        await each.close()


async def test_a_start_hook_that_fails_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "life.py").write_text(
        "async def start():\n    raise OSError('no database')\n\n\nasync def stop():\n    pass\n"
    )
    path = configured(
        tmp_path,
        '[aws]\ntopic_arn = "arn:aws:sns:us-east-1:000000000000:roomcast"\n'
        '[node]\nimds_endpoint = ""\n',
    )
    refused = roomcast("serve", "--port", "0", "--config", path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "roomcast: cannot start: hooks.start: OSError: no database"
    )
