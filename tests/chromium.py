"""A headless Chromium for tests, driven over a pair of pipes: no port, no driver program, no package.

`--remote-debugging-pipe` reads commands from file descriptor 3 and writes responses to 4, each as JSON followed by a
zero byte.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
PATIENCE = 60.0


def found() -> str | None:
    """The path of Chromium, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page, its log, and its network requests."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._last = write, read, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its response."""
        self._last += 1
        command = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def _next(self) -> dict[str, Any]:
        ends = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(ends - time.monotonic(), 0))
            part = os.read(self._read, 1 << 16) if ready else b""
            assert part, "Chromium has ended, or answers no more"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def size(self, width: int, height: int = 900) -> None:
        """Set the size of the window, in CSS pixels."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefers(self, **features: str) -> None:
        """Set what the user prefers of pages, such as `color_scheme="dark"`."""
        wanted = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self("Emulation.setEmulatedMedia", features=wanted)

    def open(self, file: Path) -> None:
        """Load a file and wait for it."""
        self.events.clear()
        self("Page.navigate", url=file.as_uri())
        ends = time.monotonic() + PATIENCE
        while self.js("document.readyState") != "complete" or self.js("location.href") == "about:blank":
            assert time.monotonic() < ends, "the page does not load"

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def too_wide(self, within: str, but: str) -> list[str]:
        """Elements beyond the window, of those that `within` selects and that pass `but`, a test of `each`."""
        room, wanted = self.js("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
        found: list[str] = self.js(
            f"[...document.querySelectorAll('{within}')].filter((each) =>"
            " { const box = each.getBoundingClientRect(); return box.width && (box.left < 0"
            f" || box.right > document.documentElement.clientWidth) && {but}; }})"
            ".map((each) => each.outerHTML.slice(0, 80))"
        )
        return found if wanted <= room else ["the page", *found]

    def press(self, key: str) -> None:
        """Press and release a key."""
        code = KEYS[key]
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings caused by the page."""
        wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in wrong]

    @property
    def requests(self) -> list[str]:
        """The URLs that the page has requested."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with an empty profile in `folder`, which ends with the block."""
    program = found()
    assert program is not None
    (their_read, write), (read, their_write) = os.pipe(), os.pipe()
    command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    # The shell moves the two pipes to the descriptors Chromium uses; our own process may already use 3 and 4.
    script = f'exec "$0" "$@" 3<&{their_read} 4>&{their_write}'
    process = subprocess.Popen(
        ["bash", "-c", script, *command],
        pass_fds=(their_read, their_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder)},
    )
    os.close(their_read)
    os.close(their_write)
    try:
        yield Browser(write, read)
    finally:
        os.close(write)
        os.close(read)
        process.terminate()
        process.wait(timeout=30)
