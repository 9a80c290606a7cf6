"""A real browser, and a site of another origin for its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web
from playwright.async_api import Browser, async_playwright

from tests.requirements import JS_DIRECTORY

__all__ = ["CONTRASTS", "chromium_at", "site"]

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

# Every element with text of its own, its colour over the colours behind it:
# the least contrast first.
CONTRASTS: Final = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const text = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
    if (!text.length || node.closest('.sr, .skip')) continue;
    if (!node.checkVisibility({ visibilityProperty: true })) continue;
    const behind = [];
    for (let up = node; up; up = up.parentElement) {
      behind.unshift(getComputedStyle(up).backgroundColor);
    }
    const back = luminance(over(behind));
    const front = luminance(over([...behind, getComputedStyle(node).color]));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    found.push([Math.round(ratio * 100) / 100, text[0].data.trim().slice(0, 30)]);
  }
  return found.sort(([one], [other]) => one - other);
}"""


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
