"""A headless Chromium, driven over WebDriver's own HTTP interface."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"),
)


def missing() -> str | None:
    """The programs that are not installed, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


class Browser:
    """One tab."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(self, path: str, **body: Any) -> Any:
        """POST, and the value of the answer."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a JavaScript function returns."""
        return self.call("/execute/sync", script=script, args=list(arguments))

    def open(self, page: Path, width: int = 1300, height: int = 1000) -> None:
        """Opens a file, in a window of this size."""
        self.resize(width, height)
        self.call("/url", url=page.resolve().as_uri())

    def resize(self, width: int, height: int) -> None:
        """Below 500 pixels it is a phone's, which a window cannot be as narrow as."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)

    def press(self, *keys: str) -> None:
        """Keys of the keyboard, one after the other: characters, those of WebDriver among them."""
        strokes = [{"type": stroke, "value": key} for key in keys for stroke in ("keyDown", "keyUp")]
        self.call("/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def complaints(self) -> list[str]:
        """What the console has said since it was last asked, warnings and errors."""
        return [entry["message"] for entry in self.call("/se/log", type="browser")]

    def picture(self, path: Path) -> None:
        """What is in sight, as a PNG."""
        with urllib.request.urlopen(self.address + "/screenshot", timeout=60) as answer:
            path.write_bytes(base64.b64decode(json.load(answer)["value"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty ``profile`` folder, gone at the end with all its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    root = Browser(f"http://127.0.0.1:{port}")
    try:
        wait(root)
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = root.call("/session", capabilities={"alwaysMatch": wanted})["sessionId"]
        tab = Browser(f"{root.address}/session/{session}")
        yield tab
        urllib.request.urlopen(urllib.request.Request(tab.address, method="DELETE"), timeout=60).close()
    finally:
        driver.terminate()
        driver.wait()


def wait(root: Browser) -> None:
    """Until the driver answers."""
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{root.address}/status", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("chromedriver does not answer")
