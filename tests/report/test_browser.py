"""The page in a real browser: it shows without a network, and without a word on the console."""

import os
import shutil
import subprocess

import cv2
import pytest

from drgrade.report.stage import make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
)  # fmt: skip


@pytest.fixture
def chromium():
    if not CHROMIUM:
        message = "no chromium here: install Debian's package chromium to test the page in a browser"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return CHROMIUM


def test_page_in_a_browser(chromium, run, tmp_path):
    make_report(**run, out=tmp_path / "report")
    page = (tmp_path / "report/report.html").rename(tmp_path / "alone.html")
    shot = tmp_path / "shot.png"
    result = subprocess.run(
        [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,2600",
         f"--screenshot={shot}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in result.stderr
    picture = cv2.imread(str(shot))
    assert picture.shape == (2600, 1100, 3)
    # the bars of the leaderboard (BGR of #9db8d6) can only come from the embedded image
    assert (abs(picture.astype(int) - (0xD6, 0xB8, 0x9D)).max(axis=2) < 4).sum() > 2000
