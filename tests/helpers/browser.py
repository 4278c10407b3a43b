"""A headless browser, for tests of pages."""

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

_LAUNCH = "import os, sys; i, o, *c = sys.argv[1:]; os.dup2(int(i), 3); os.dup2(int(o), 4); os.execv(c[0], c)"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page:
    """A page in headless Chromium, driven by the DevTools protocol over a pair of pipes.

    Args:
        executable: path of the browser.
        profile: folder for its profile.
        url: the page.

    Attributes:
        events: all events until now: requests, console messages, replies.
    """

    def __init__(self, executable: str, profile: Path, url: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._ids = count(1)
        self._buffer = b""
        self._session: str | None = None
        low_in, self._out = os.pipe()
        self._in, low_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4, so the pipes must have other numbers.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (low_in, low_out)]
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        flags += "--disable-component-update --disable-sync --remote-debugging-pipe --window-size=1200,900"
        # No host name resolves, so no request leaves the machine; a server of the test is reached by its address.
        names = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
        command = [executable, *flags.split(), "--no-proxy-server", names, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *map(str, theirs), *command, "about:blank"],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (low_in, low_out, *theirs):
            os.close(end)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.call("Page.navigate", url=url)
            self._wait(lambda event: event.get("method") == "Page.loadEventFired")
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        message: dict[str, Any] = {"id": next(self._ids), "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        reply = self._wait(lambda event: event.get("id") == message["id"])
        assert "error" not in reply, f"{method}: {reply.get('error')}"
        return reply["result"]

    def evaluate(self, function: str) -> Any:
        """Run an async JavaScript function in the page and return its result."""
        reply = self.call("Runtime.evaluate", expression=f"({function})()", awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def requests(self) -> list[str]:
        """The URLs that the page requested, without data and blob URLs."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def errors(self) -> list[str]:
        """Errors and warnings of the console, uncaught exceptions and violations of the content policy, as JSON."""
        bad = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in bad]

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _wait(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            while b"\0" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\0")
                event = json.loads(line)
                self.events.append(event)
                if wanted(event):
                    return event
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "Chromium ended" if ready else f"no answer from Chromium in {seconds:g} s"
            self._buffer += data
