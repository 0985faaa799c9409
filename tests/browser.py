"""Chromium without a window and without a network, driven over its DevTools pipe: real drawing, real mouse."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")

OPTIONS = (
    "--headless",
    "--no-sandbox",  # a container's root may not make one; only pages of these tests are opened
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--proxy-server=127.0.0.1:9",  # nothing listens there
    "--proxy-bypass-list=<-loopback>",
    "--window-size=1200,900",
    "--remote-debugging-pipe",
)
TIMEOUT = 60.0
# The browser reads from descriptor 3 and writes to 4.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Page:
    """One tab.

    Args:
        browser: the browser.
        session: the tab's DevTools session.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.send("Network.emulateNetworkConditions", **offline)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, parameters, self)

    def open(self, file: Path) -> Page:
        """Open a file and wait until it is loaded, scripts included."""
        self.problems.clear()
        self.requests.clear()
        self.loaded = False
        self.send("Page.navigate", url=file.as_uri())
        self.browser.wait(lambda: self.loaded)
        return self

    def take(self, event: dict[str, Any]) -> None:
        kind, values = event["method"], event["params"]
        if kind == "Page.loadEventFired":
            self.loaded = True
        elif kind == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(values["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(values["args"]))
        elif kind == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(values["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def choose(self, selector: str, value: object) -> None:
        """Choose an option of a select, as a user does."""
        self.run(
            f"(() => {{ const select = document.querySelector({json.dumps(selector)});"
            f" select.value = {json.dumps(str(value))};"
            " select.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def point(self, element: str, *, click: bool = False) -> None:
        """Move the mouse to the middle of an element, given as a JavaScript expression, and perhaps click."""
        x, y = self.run(
            f"(() => {{ const element = {element}; element.scrollIntoView({{block: 'center', inline: 'center'}});"
            " const box = element.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, file: Path) -> None:
        """Save what the page looks like."""
        file.write_bytes(b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


class Browser:
    """A running browser.

    Args:
        process: its process.
        requests: file descriptor that it reads from.
        answers: file descriptor that it writes to.
    """

    def __init__(self, process: subprocess.Popen[bytes], requests: int, answers: int) -> None:
        self.process, self.requests, self.answers = process, requests, answers
        self.number, self.received, self.replies = 0, b"", {}
        self.pages: dict[str, Page] = {}

    def new_page(self) -> Page:
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self.pages[session] = page = Page.__new__(Page)
        page.__init__(self, session)
        return page

    def send(self, method: str, parameters: dict[str, Any], page: Page | None = None) -> dict[str, Any]:
        self.number += 1
        number = self.number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if page is not None:
            message["sessionId"] = page.session
        os.write(self.requests, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self.replies)
        reply = self.replies.pop(number)
        assert "error" not in reply, (method, reply)
        return reply["result"]

    def wait(self, done: Any) -> None:
        """Take in messages until something is done."""
        end = time.monotonic() + TIMEOUT
        while not done():
            assert time.monotonic() < end, "the browser does not answer"
            if not select.select([self.answers], [], [], 0.5)[0]:
                continue
            chunk = os.read(self.answers, 1 << 20)
            assert chunk, "the browser has ended"
            *messages, self.received = (self.received + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self.replies[message["id"]] = message
                elif message.get("sessionId") in self.pages:
                    self.pages[message["sessionId"]].take(message)


@contextmanager
def chromium(folder: Path) -> Generator[Browser]:
    """Start a browser that keeps its profile in a folder, and end it."""
    assert CHROMIUM is not None
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (theirs_in, theirs_out)]
    command = [sys.executable, "-c", LAUNCH, *map(str, theirs), CHROMIUM, *OPTIONS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for descriptor in (theirs_in, theirs_out, *theirs):
        os.close(descriptor)
    try:
        yield Browser(process, ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.terminate()
        process.wait(timeout=TIMEOUT)
