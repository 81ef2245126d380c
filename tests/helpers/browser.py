"""Chromium without a window, where there is one: `chromium-headless-shell` of Debian will do.

It is looked for on the PATH; the environment variable PID_JAX_CHROMIUM names another.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "headless_shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)


@dataclass(frozen=True)
class Opened:
    """What a page became: its elements after scripts have run, and what the console said."""

    dom: str
    console: list[str]


def open_page(
    page: Path, *options: str, width: int = 1280, height: int = 900, profile: Path
) -> Opened:
    """Opens a file; the test is skipped where there is no Chromium. `profile` is a folder."""
    program = os.environ.get("PID_JAX_CHROMIUM") or next(
        filter(None, map(shutil.which, _NAMES)), ""
    )
    if not program:
        pytest.skip("needs Chromium: install chromium-headless-shell or set PID_JAX_CHROMIUM")
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    result = subprocess.run(
        [
            program,
            "--headless",
            "--disable-gpu",
            *as_root,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "--enable-logging=stderr",
            "--dump-dom",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    # [1122/175714.339354:INFO:CONSOLE:1] "message", source: ...; older: INFO:CONSOLE(1)
    console = re.findall(r"^\[[^]]*:CONSOLE[^]]*\] (.*)$", result.stderr, re.MULTILINE)
    return Opened(result.stdout, console)
