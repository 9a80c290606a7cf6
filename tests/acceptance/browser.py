"""A real browser, and a site of another origin for its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web
from playwright.async_api import Browser, async_playwright

from tests.requirements import JS_DIRECTORY

__all__ = ["chromium_at", "site"]

# Of Chromium: its sandbox needs what containers lack, and it must not look for anybody else.
_ARGUMENTS: Final = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
# The page of a client, and the SDK as npm has it.
_FILES: Final = {
    "page.html": JS_DIRECTORY / "page.html",
    "client.mjs": JS_DIRECTORY / "client.mjs",
    **{
        name: JS_DIRECTORY / "node_modules" / "centrifuge" / "dist" / name
        for name in ("centrifuge.js", "centrifuge.protobuf.js")
    },
}


@asynccontextmanager
async def chromium_at(path: str, *arguments: str) -> AsyncIterator[Browser]:
    """The Chromium at `path`. `arguments`: further ones."""
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=path, args=[*_ARGUMENTS, *arguments]
        )
        try:
            yield running
        finally:
            await running.close()


@asynccontextmanager
async def site() -> AsyncIterator[int]:
    """A site on loopback with js/page.html and what that loads. Yields its port."""
    app = web.Application()
    for name, path in _FILES.items():
        app.router.add_get(f"/{name}", _giving(path))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        served = web.TCPSite(runner, "127.0.0.1", 0)
        await served.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _giving(path: Path) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def give(_: web.Request) -> web.FileResponse:
        return web.FileResponse(path)

    return give
