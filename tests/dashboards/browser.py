"""A headless Chromium driven over its own protocol: as much of a browser library as one test needs."""

import base64
import itertools
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect


class Browser:
    """One page of a fresh Chromium. Use as a context manager."""

    def __init__(self, executable: str, profile: Path) -> None:
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            "--window-size=1200,900",
        ]
        self._process = subprocess.Popen(
            [executable, *flags, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
        )
        port_file = profile / "DevToolsActivePort"
        wait_for(port_file.exists, 30)
        wait_for(lambda: port_file.read_text().strip(), 5)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as reply:
            target = next(t for t in json.load(reply) if t["type"] == "page")
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=2**28)
        self._ids = itertools.count(1)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            reply = json.loads(self._socket.recv(timeout=30))
            if reply.get("id") == number:
                return reply["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=f"Digit{key}", text=key if kind == "keyDown" else ""
            )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def wait_for(condition: Any, seconds: float) -> Any:
    """The condition's first true value. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"still waiting after {seconds} s")
