"""Opens a page in Chromium, without a window, and measures what a reader would see."""

from __future__ import annotations

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SCHEMES = ("light", "dark")
MEASURE = Path(__file__).with_name("browser.js").read_text(encoding="utf-8")


def chromium():
    """Return the path of Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def measured(page, widths, scheme, folder):
    """Return, for each width in pixels, what is wrong with a page and how high it is.

    The page is shown in a frame of that width: a window cannot be as narrow as a telephone.
    """
    outer = folder / f"outer-{scheme}.html"
    data = json.dumps({"page": page, "widths": widths}).replace("<", "\\u003c")
    outer.write_text(
        f"<!doctype html><meta charset='utf-8'><body><script>const given = {data};\n{MEASURE}"
        "</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [*_command(scheme, folder), "--dump-dom", outer.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    _, found, rest = done.stdout.partition('<pre id="measured">')
    assert found, f"Chromium measured nothing: {done.stderr[-2000:]}"
    result = json.loads(unescape(rest.partition("</pre>")[0]))
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {each["width"]: {**each, "console": said} for each in result}


def _command(scheme, folder):
    return [
        chromium(),
        "--headless",
        "--no-sandbox",  # the sandbox does not start for root in a container
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / f'profile-{scheme}'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--blink-settings=preferredColorScheme={SCHEMES.index(scheme) ^ 1}",
    ]
