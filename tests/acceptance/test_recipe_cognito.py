"""docs/recipes/cognito.md, from an empty folder: people sign in to a user pool of an emulated
Cognito, which signs their tokens and shows its keys.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import boto3
import jwt
import pytest
from playwright.async_api import Page, WebSocketRoute, expect

from tests.acceptance.browser import chromium_at
from tests.acceptance.conftest import OpenPeer, running
from tests.acceptance.recipe import laid_out, replaced, script
from tests.acceptance.roomcast import REGION, Dev, emulator, environment

PAGE: Final = "docs/recipes/cognito.md"
TEST: Final = "test_recipe_cognito.py"
POOL, APP = "us-east-1_EXAMPLE", "1example23456789"
PASSWORD: Final = "A-passw0rd-of-yours"
SHOWN_MS: Final = 20_000
pytestmark = pytest.mark.timeout(120)


class Cognito:
    """The emulated one, with what `make_pool.py` made in it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "acceptance",
            "AWS_SECRET_ACCESS_KEY": "acceptance",
        }
        self.pool = self.app = ""
        self.client = boto3.client(
            "cognito-idp",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id="acceptance",
            aws_secret_access_key="acceptance",
        )

    def make(self, path: Path) -> None:
        made = subprocess.run(
            [sys.executable, path.name, PASSWORD],
            cwd=path.parent,
            env=environment() | self.environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert made.returncode == 0, made.stderr
        self.pool, self.app = made.stdout.split()

    def another_app(self, pool: str) -> str:
        made = self.client.create_user_pool_client(
            UserPoolId=pool,
            ClientName="another",
            ExplicitAuthFlows=["ALLOW_USER_PASSWORD_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"],
        )
        return str(made["UserPoolClient"]["ClientId"])

    def tokens(self, app: str) -> dict[str, str]:
        answer = self.client.initiate_auth(
            ClientId=app,
            AuthFlow="USER_PASSWORD_AUTH",
            AuthParameters={"USERNAME": "ann", "PASSWORD": PASSWORD},
        )
        return dict(answer["AuthenticationResult"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, node: str) -> Path:
    """`node` has installed the SDK."""
    directory = tmp_path_factory.mktemp("cognito")
    names = ("make_pool.py", "roomcast.toml", "cognito_site.py", "cognito.html")
    laid_out(directory, PAGE, TEST, *names)
    return directory


@pytest.fixture(scope="module")
def cognito(folder: Path) -> Iterator[Cognito]:
    with emulator() as endpoint:
        emulated = Cognito(endpoint)
        emulated.make(folder / "make_pool.py")
        for name in ("roomcast.toml", "cognito_site.py"):
            path = folder / name
            text = replaced(path.read_text(), (APP, emulated.app))
            path.write_text(text.replace(POOL, emulated.pool))
        yield emulated
        emulated.client.close()


@pytest.fixture(scope="module")
def signed(folder: Path, cognito: Cognito) -> Iterator[Dev]:
    """The keys are at the emulator; whose they are is what tokens say."""
    config = folder / "roomcast.toml"
    keys = f"{cognito.pool}/.well-known/jwks.json"
    config.write_text(
        replaced(
            config.read_text(),
            (f"https://cognito-idp.us-east-1.amazonaws.com/{keys}", f"{cognito.endpoint}/{keys}"),
        )
    )
    with running("--config", str(config), "--aws-endpoint", cognito.endpoint) as dev:
        page = folder / "cognito.html"
        socket = ("ws://127.0.0.1:8000/connection/websocket", dev.ws_urls[0])
        page.write_text(replaced(page.read_text(), socket))
        yield dev


class Wire:
    """What goes over the page's sockets, to which tokens seem to end soon: Cognito's shortest last
    five minutes.
    """

    def __init__(self) -> None:
        self.sockets = 0
        self.commands: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []

    def pass_on(self, socket: WebSocketRoute) -> None:
        self.sockets += 1
        server = socket.connect_to_server()

        def up(frame: str | bytes) -> None:
            self.commands += [json.loads(line) for line in str(frame).splitlines()]
            server.send(frame)

        def down(frame: str | bytes) -> None:
            replies = [json.loads(line) for line in str(frame).splitlines()]
            self.replies += replies
            for reply in replies:
                for result in (reply.get("connect"), reply.get("refresh")):
                    if result:
                        assert result["ttl"] > 60
                        result["ttl"] = 1
            socket.send("\n".join(json.dumps(reply) for reply in replies))

        socket.on_message(up)
        server.on_message(down)

    def shown(self) -> list[str]:
        """The tokens that were shown, those of the connect first."""
        return [
            command[kind]["token"]
            for command in self.commands
            for kind in ("connect", "refresh")
            if kind in command
        ]


@pytest.fixture
async def page(browser: str, folder: Path, cognito: Cognito, signed: Dev) -> AsyncIterator[Page]:
    site = folder / "cognito_site.py"
    with script(site, **cognito.environment) as url:
        async with chromium_at(browser) as chromium:
            opened = await chromium.new_page()
            await opened.goto(url)
            yield opened


async def said(page: Page, words: str) -> None:
    await expect(page.locator("#status")).to_have_text(words, timeout=SHOWN_MS)


async def test_a_user_of_the_pool_signs_in_stays_and_signs_out(page: Page) -> None:
    wire = Wire()
    await page.route_web_socket("**/connection/websocket", wire.pass_on)
    await page.get_by_label("Name").fill("ann")
    await page.get_by_label("Password").fill("Not-the-passw0rd")
    await page.keyboard.press("Enter")
    await said(page, "wrong name or password, or signed out")
    assert wire.sockets == 0

    await page.get_by_label("Password").fill(PASSWORD)
    async with page.expect_response("**/token") as first:
        await page.keyboard.press("Enter")
    assert (await first.value).ok
    await said(page, "Connected")
    await expect(page.locator("#people")).to_have_text("ann", timeout=SHOWN_MS)

    # The token ends, again and again, and the connection goes on.
    for _ in range(2):
        async with page.expect_response("**/token") as another:
            pass
        assert (await another.value).ok
    assert wire.sockets == 1
    shown = wire.shown()
    assert len(set(shown)) == len(shown) >= 2
    assert [reply for reply in wire.replies if "error" in reply] == []
    assert len([reply for reply in wire.replies if "refresh" in reply]) >= 1
    assert {jwt.decode(t, options={"verify_signature": False})["token_use"] for t in shown} == {
        "id"
    }

    # Signed out on another device: the site still has her session, and gets no further token.
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as device:
        for path, form in (("sign-in", {"name": "ann", "password": PASSWORD}), ("sign-out", {})):
            async with device.post(f"{page.url}{path}", data=form) as answer:
                assert answer.status == 204
    await said(page, "Disconnected: unauthorized")
    assert wire.sockets == 1


async def test_no_other_token_of_cognito_is_good(
    peer: OpenPeer, cognito: Cognito, signed: Dev
) -> None:
    mine = cognito.tokens(cognito.app)
    ann = await peer("py", signed.ws_urls[1], mine["IdToken"])
    await ann.subscribe("room:attic")
    (member,) = (await ann.presence("room:attic")).values()
    assert member["user"] == "ann"

    other_pool = cognito.client.create_user_pool(PoolName="other")["UserPool"]["Id"]
    cognito.client.admin_create_user(UserPoolId=other_pool, Username="ann")
    cognito.client.admin_set_user_password(
        UserPoolId=other_pool, Username="ann", Password=PASSWORD, Permanent=True
    )
    claims = jwt.decode(mine["IdToken"], options={"verify_signature": False})
    # The emulator has one key for all pools, and ids of app clients are not used twice.
    stranger = jwt.encode(claims, "a-key-of-somebody-else-of-32-bytes", algorithm="HS256")
    for token in (
        mine["AccessToken"],
        cognito.tokens(cognito.another_app(cognito.pool))["IdToken"],
        cognito.tokens(cognito.another_app(other_pool))["IdToken"],
        stranger,
    ):
        refused = await peer("py", signed.ws_urls[0], token, connected=False)
        await refused.call("connect")
        assert (await refused.event("disconnected"))["code"] == 3500


def test_the_tokens_differ_in_what_the_page_says(cognito: Cognito) -> None:
    mine = cognito.tokens(cognito.app)
    of_id, of_access = (
        jwt.decode(mine[name], options={"verify_signature": False})
        for name in ("IdToken", "AccessToken")
    )
    assert of_id["aud"] == of_access["client_id"] == cognito.app
    assert "aud" not in of_access
    assert of_id["cognito:username"] == of_access["username"] == "ann"
    assert of_id["sub"] == of_access["sub"]
