"""A Chromium without a screen, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.numbers = itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=60)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def evaluate(self, expression: str) -> Any:
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait_for(self, expression: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (found := await self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} did not come true"
            await asyncio.sleep(0.1)
        return found

    async def screenshot(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def opened(url: str, profile: Path, size: tuple[int, int] = (1000, 1200)):
    """A page at an address, in a browser with a profile of its own."""
    process = subprocess.Popen(
        [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        file = profile / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (file.exists() and file.read_text().count("\n")):
            assert time.monotonic() < end, "the browser did not start"
            assert process.poll() is None, "the browser ended"
            await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{file.read_text().splitlines()[0]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{address}/json") as response:
                targets = [one for one in await response.json() if one["type"] == "page"]
            socket = session.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0)
            async with socket as connection:
                page = Page(connection)
                await page.call("Page.enable")
                await page.call("Page.navigate", url=url)
                yield page
    finally:
        process.terminate()
        process.wait(30)
