"""The page in a real browser: it shows without a network, on a phone too, and nothing is on the console."""

import os
import re
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
FRAME = """<!DOCTYPE html>
<iframe id="frame" src="{page}" width="{width}" height="800" style="border: 0"></iframe><p id="found"></p>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {{
  const page = frame.contentDocument.documentElement;
  const tables = [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth);
  document.getElementById("found").textContent = `${{page.scrollWidth}} px, ${{tables.length}} wide tables`;
}};
</script>
"""
"""Shows a page in a frame of some width, which can be narrower than a window, and measures it."""


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        message = "no chromium here: install Debian's package chromium to test the page in a browser"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return CHROMIUM


@pytest.fixture(scope="module")
def page(run, values, tmp_path_factory):
    """The page alone, without its folder."""
    folder = tmp_path_factory.mktemp("page")
    make_report(run, values, folder / "report")
    return (folder / "report/report.html").rename(folder / "alone.html")


def browse(chromium, profile, *arguments):
    """What a browser writes: the document, and the log."""
    result = subprocess.run(
        [chromium, *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in result.stderr
    return result.stdout


def test_page_in_a_browser(chromium, page, tmp_path):
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path / "profile", "--window-size=1280,2600", f"--screenshot={shot}", page.as_uri())
    picture = cv2.imread(str(shot))
    assert picture.shape == (2600, 1280, 3)
    # the bars of the leaderboard (BGR of #9db8d6) can only come from the embedded image
    assert (abs(picture.astype(int) - (0xD6, 0xB8, 0x9D)).max(axis=2) < 4).sum() > 2000


@pytest.mark.parametrize("width", [390, 1280])
def test_only_tables_scroll_sideways(width, chromium, page, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    document = browse(
        chromium, tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom", frame.as_uri()
    )
    found = re.search(r'id="found">(\d+) px, (\d+) wide tables<', document)
    assert found, "the frame was not measured"
    assert int(found[1]) <= width
    assert int(found[2]) > 0
