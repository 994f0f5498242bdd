"""The web page: what it says, what it draws, and the page itself in a browser."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from fcntl import F_DUPFD, fcntl

import cv2
import numpy as np
import pandas as pd
import pytest
from tests.evaluate.tables import drawn
from tests.images.test_read import eye, save

from drgrade.cli import main
from drgrade.errors import UserError
from drgrade.evaluate import fits
from drgrade.grading.finetune import Finetune, Params
from drgrade.lesions.found import Found
from drgrade.lesions.tiles import Tiling
from drgrade.params import Calibrate, Crop, Lesions
from drgrade.predict.model import Model
from drgrade.predict.source import unfitted
from drgrade.schema import LESIONS
from drgrade.synthetic.icdr import icdr_grade
from drgrade.web import lesions, page
from drgrade.web.answer import as_html, facts, headline
from drgrade.web.grader import WebGrader
from drgrade.web.lesions import LesionFinder
from drgrade.web.page import sample_photograph

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
REQUEST = "Network.requestWillBeSent"
READY = re.compile(r"then open (http://\S+)")
ROW = {
    "status": "ok", "reason": "", "score": 2.13, "grade": 2, "name": "moderate", "p0": 0.05,
    "p1": 0.15, "p2": 0.6, "p3": 0.15, "p4": 0.05, "p_referable": 0.8,
    "referable": True, "grades": "1-3", "abstain": True,
    "quality": 0.5, "fov": 0.9, "sharpness": 0.5, "exposure": 0.75, "contrast": 1.0,
}  # fmt: skip
BAD = {**dict.fromkeys(ROW), "status": "failed", "reason": "not <an> image"}


@pytest.fixture(scope="module")
def fit():
    """Temperature and operating points, fitted on 60 photographs."""
    grades, probabilities = drawn(60)
    table = pd.DataFrame(probabilities, columns=[f"p{grade}" for grade in range(5)])
    table = table.assign(grade=grades, score=probabilities @ np.arange(5), patient_id=range(60))
    return fits.fit(table, Calibrate(), (None, None))


def test_headlines():
    assert headline(ROW) == "Grade 2: moderate retinopathy"
    assert headline({**ROW, "grade": 0, "name": "none"}) == "Grade 0: no retinopathy"
    assert headline(BAD) == "Not graded: this file cannot be read: not <an> image"
    assert headline({**BAD, "status": "no retina found"}) == "Not graded: no retina found: not <an> image"


def test_decisions_in_words(fit):
    threshold = fit.points["specificity_87"].threshold
    decided = f"probability 0.80, threshold {threshold:.2f} (operating point specificity_87)"
    assert facts(ROW, fit, Calibrate(max_grades=1)) == {
        "Expected grade": "2.13, from 0 (no retinopathy) to 4 (proliferative)",
        "Referable (grade 2 or higher)": f"yes: {decided}",
        "Likely grades": "1-3; such sets hold the true grade of 90% of photographs",
        "Leave to a clinician": "yes: the likely grades are more than 1",
        "Probabilities": "calibrated (temperature)",
    }
    found = facts({**ROW, "referable": False, "abstain": False, "grades": ""}, fit, Calibrate(alpha=0.05))
    assert found["Referable (grade 2 or higher)"] == f"no: {decided}"
    assert found["Likely grades"] == "none of the five; such sets hold the true grade of 95% of photographs"
    assert found["Leave to a clinician"] == "no: the likely grades are at most 2"


def test_what_is_not_known_says_why():
    row = {**ROW, "referable": pd.NA, "grades": pd.NA, "abstain": pd.NA}
    found = facts(row, unfitted("nobody validates"), Calibrate())
    assert found["Referable (grade 2 or higher)"] == "probability 0.80; not decided: nobody validates"
    assert found["Likely grades"] == "not known: nobody validates"
    assert found["Leave to a clinician"] == "not decided, as the likely grades are not known"
    assert found["Probabilities"] == "not calibrated: nobody validates"


def test_html_of_a_graded_photograph(fit):
    html = as_html(ROW, fit, Calibrate(), {"Lesions": "<none> found"})
    widths = " ".join(re.findall(r"width:([\d.]+)%", html))
    assert widths == "5.0 15.0 60.0 15.0 5.0 90.0 50.0 75.0 100.0"
    assert re.findall(r"<th scope='row'>(.*?)</th>", html)[:5] == [
        "0 none", "1 mild", "2 moderate", "3 severe", "4 proliferative"
    ]  # fmt: skip
    assert "<dt>Lesions</dt><dd>&lt;none&gt; found</dd>" in html
    assert "Quality of the photograph: 0.50, the lowest part is sharpness" in html


def test_html_of_other_files(fit):
    assert as_html(BAD, fit, Calibrate(), {}) == (
        "<h2>Not graded: this file cannot be read: not &lt;an&gt; image</h2>"
    )
    measured = {name: ROW[name] for name in ("quality", "fov", "sharpness", "exposure", "contrast")}
    html = as_html({**BAD, "status": "no retina found", **measured}, fit, Calibrate(), {})
    assert html.count("<table") == 1
    assert "Probability" not in html


def spots(tiles):
    """Finds the white spots on tiles, and with a low score the whole tile."""
    for tile in tiles:
        ys, xs = np.nonzero(tile.min(axis=2) > 200)
        boxes = [[0, 0, 64, 64]] + ([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if len(xs) else [])
        labels = [LESIONS.index("HE"), LESIONS.index("EX")][: len(boxes)]
        yield Found(np.array(boxes, float), np.array([0.1, 0.9], np.float32)[: len(boxes)], np.array(labels))


def test_lesions_are_found_in_pixels_of_the_photograph():
    """A spot of 20 px that lies on several tiles is one lesion; what is unsure is left out."""
    finder = LesionFinder(lambda tiles: list(spots(tiles)), Tiling(64, 0.5, 1.0), Lesions(min_score=0.3))
    image = eye(300, 200, 90, spot=(170, 80, 10))
    found = finder.find(image, (60, 10, 240, 190))
    assert found.labels.tolist() == [LESIONS.index("EX")]
    np.testing.assert_allclose(found.boxes, [[160, 70, 180, 90]], atol=1)
    assert lesions.summary(found) == "hard exudate 1 (yellow)"
    assert lesions.summary(found[np.array([False])]) == "none found"


def test_lesions_are_drawn_at_the_scale_of_the_drawing():
    image = np.zeros((1024, 2048, 3), np.uint8)
    found = Found(np.array([[200.0, 400, 600, 800]]), np.array([0.9]), np.array([LESIONS.index("EX")]))
    drawing = lesions.draw(image, found)
    assert drawing.shape == (512, 1024, 3)
    ys, xs = np.nonzero((drawing == (0xFF, 0xE1, 0x19)).all(axis=2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == pytest.approx((100, 200, 300, 400), abs=1)
    assert not image.any()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that has learnt nothing, as one training of an experiment."""
    folder = tmp_path_factory.mktemp("results") / "own/grade/one"
    grader = Finetune(Params(input_size=32), Crop(size=48))
    grader.network = grader.new_network("random")
    grader.save(folder / "seed0/model")
    return folder


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    return save(tmp_path_factory.mktemp("photographs") / "17_left.png", eye(300, 200, 90))


def test_a_photograph_is_graded_as_predict_does(trained, photograph, tmp_path):
    model = Model.load(trained)
    answer = WebGrader.of(model, None, photograph).grade(photograph)
    graded = next(model.batches([photograph], explain="auto"))
    assert f"<h2>{headline(graded.table.iloc[0])}</h2>" in answer.html
    np.testing.assert_array_equal(answer.photograph, eye(300, 200, 90))
    np.testing.assert_array_equal(answer.heat_map, graded.heat_maps[0])
    assert answer.lesions is None
    assert "--detector" in answer.html


def test_a_detector_replaces_lesion_maps(trained, photograph):
    finder = LesionFinder(lambda tiles: list(spots(tiles)), Tiling(64, 0.5, 1.0), Lesions(min_score=0.05))
    answer = WebGrader.of(Model.load(trained), finder, photograph).grade(photograph)
    assert "<dt>Lesions</dt><dd>haemorrhage " in answer.html
    white = (answer.lesions == 255).all(axis=2)
    assert white.any()
    np.testing.assert_array_equal(answer.lesions[~white], answer.photograph[~white])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a letter", "cannot be read: not an image"),
        (b"", "cannot be read: empty file"),
        (cv2.imencode(".png", np.zeros((20, 200), np.uint8))[1].tobytes(), "no photograph of an eye"),
        (cv2.imencode(".png", np.full((90, 90), 255, np.uint8))[1].tobytes(), "no retina found: neither"),
    ],
)
def test_other_files_get_a_reason(trained, tmp_path, content, reason):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    answer = WebGrader(Model.load(trained), "auto", None, None).grade(path)
    assert f"{reason}" in answer.html
    assert answer[1:] == (None, None, None)


def test_the_sample_shows_severe_retinopathy():
    assert icdr_grade(sample_photograph().eye.lesions) == 3


def test_without_gradio_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "run `uv sync --extra page` or `pip install drgrade[page]`" in capsys.readouterr().err


def test_only_loopback_addresses_go_without_a_warning(caplog):
    for host in ("127.0.0.1", "localhost"):
        page._listening(host, 0).close()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    page._listening("0.0.0.0", 0).close()
    assert "--host 0.0.0.0: whoever reaches this machine can use the page; it has no password" in caplog.text


def test_a_port_in_use_is_an_error():
    with page._listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host 127\.0\.0\.1 --port {port}: .*; name another"):
            page._listening("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--port 70000: .*; name another"):
        page._listening("127.0.0.1", 70_000)


@contextmanager
def served(*arguments, cwd):
    """The page in a process of its own; yields its address and its log."""
    command = [sys.executable, "-m", "drgrade", "demo", "--port", "0", *arguments]
    log, temporary = cwd / "demo.log", cwd / "tmp"
    temporary.mkdir()
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, cwd=cwd, stderr=stream, env=os.environ | {"TMPDIR": str(temporary)}
        )
    try:
        wait(lambda: "ready; press" in log.read_text() or server.poll() is not None)
        yield READY.search(log.read_text())[1], log
    finally:
        server.terminate()
        assert server.wait(30) == 0
    assert list(temporary.iterdir()) == []  # uploads are deleted


def wait(condition, seconds=120):
    """Return the first value of the condition that counts as true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


class Browser:
    """A tab of Chromium, driven through its file descriptors 3 and 4 by the DevTools protocol."""

    def __init__(self, profile, width=1280, height=1700):
        (commands, self._out), (self._in, answers) = os.pipe(), os.pipe()
        pipes = [fcntl(descriptor, F_DUPFD, 10) for descriptor in (commands, answers)]
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=lambda: [os.dup2(pipe, place) for place, pipe in enumerate(pipes, 3)],
        )
        for descriptor in (commands, answers, *pipes):
            os.close(descriptor)
        self._numbers, self._buffer, self._session, self.events = itertools.count(), b"", {}, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        os.close(self._in)
        os.close(self._out)

    def __call__(self, method, **params):
        """Send a command; return its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != number:
            self.events.append(message)
        return message["result"]

    def _message(self):
        while b"\0" not in self._buffer:
            received = os.read(self._in, 1 << 16)
            assert received, "the browser has ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def run(self, script):
        """Return the value of an expression in JavaScript."""
        return self("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def upload(self, path):
        """Choose a file, once there is a field for it."""
        wait(lambda: self.run("!!document.querySelector('input[type=file]')"))
        root = self("DOM.getDocument")["root"]["nodeId"]
        field = self("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self("DOM.setFileInputFiles", files=[str(path)], nodeId=field)

    def click(self, word):
        """Click the button whose text or label has a word."""
        found = f"one => (one.innerText + one.ariaLabel).includes('{word}')"
        self.run(f"[...document.querySelectorAll('button')].find({found}).click()")

    def answer(self, *words):
        """Wait for an answer with these words; return it, without Gradio's "processing" above it."""
        script = "document.querySelector('.answer .prose')?.innerText ?? ''"
        return wait(lambda: (text := self.run(script)) and all(word in text for word in words) and text)


def test_the_page_in_a_browser(trained, photograph, tmp_path):
    """A photograph is graded, a text file refused, the sample graded; nothing is loaded from elsewhere."""
    if not CHROMIUM:
        message = "no chromium here: install Debian's package chromium to test the page in a browser"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear colleague")
    with served("--model", str(trained), cwd=tmp_path) as (address, log), Browser(tmp_path / "b") as browser:
        browser("Page.navigate", url=address)
        browser.answer("Drop a photograph")
        browser.upload(photograph)
        answer = browser.answer("Grade ", "Expected grade")
        assert answer.startswith(headline(Model.load(trained).grade([photograph]).iloc[0]))
        widths = "[...document.querySelectorAll('img')].map(image => image.naturalWidth)"
        assert wait(lambda: all(found := browser.run(widths)) and found) == [300, 300]  # and the heat map
        browser.click("Clear")
        browser.answer("Drop a photograph")
        browser.upload(letter)
        assert browser.answer("Not graded") == "Not graded: this file cannot be read: not an image"
        browser.click("sample")
        browser.answer("Grade ", "Quality of the photograph")
    kinds = ("Log.entryAdded", "Runtime.exceptionThrown")  # errors, also of what the policy refused
    assert [event for event in browser.events if event["method"] in kinds] == []
    requests = [event["params"]["request"]["url"] for event in browser.events if event["method"] == REQUEST]
    assert any(request.startswith(f"{address}theme.css") for request in requests)
    assert [request for request in requests if not request.startswith((address, "data:", "blob:"))] == []
    assert "Traceback" not in log.read_text()
