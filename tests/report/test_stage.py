import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.report.page import Page
from drgrade.report.stage import add_leaderboard, make_report

# elements that have no end tag
VOID = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="session")
def out(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make_report(**run, out=folder)
    return folder


@pytest.fixture(scope="session")
def page(out):
    reader = Reader()
    reader.feed((out / "report.html").read_text())
    assert reader.open == []
    return reader


def test_what_is_written(out):
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "crop_sheet.png",
        "froc.png",
        "input.csv",
        "lesion_sheet.png",
        "model_cards/good.md",
        "model_cards/majority.md",
        "params.yaml",
        "report.html",
        "worst_sheet.png",
    ]


def test_external_tests_are_on_the_page_and_only_then(run, out, page, tmp_path):
    assert "other_site" in page.text
    assert "0.088" in page.text
    assert page.text.count("0.735") == 2, "QWK with fitted thresholds, here and in the leaderboard"
    other = tmp_path / "leaderboard"
    shutil.copytree(run["leaderboard"].parent, other)
    external = other / "external.csv"
    external.write_text(external.read_text().splitlines()[0] + "\n")
    make_report(**run | {"leaderboard": other / "leaderboard.csv"}, out=tmp_path / "out")
    assert "On other datasets" not in (tmp_path / "out/report.html").read_text()
    assert "On other datasets" in (out / "report.html").read_text()


def test_every_row_is_counted(run, out):
    counts = pd.read_csv(out / "input.csv", keep_default_na=False)
    for name in ("index", "crops"):
        length = len(pd.read_parquet(run["crops_table" if name == "crops" else "index"]))
        assert counts.loc[counts["table"] == name, "rows"].sum() == length == 12
    missing = counts[(counts["table"] == "index") & (counts["status"] == "missing")]
    assert missing["rows"].tolist() == [2]
    assert missing["reason"].tolist() == ["no photograph for this label"]
    ok = counts[(counts["table"] == "crops") & (counts["status"] == "ok")]
    assert dict(zip(ok["subset"], ok["rows"], strict=True)) == {"grading": 7, "segmentation": 1}


def test_page_stands_alone(out, page):
    for tag in ("script", "link", "iframe", "object"):
        assert not page.all(tag)
    assert len(page.all("img")) == 8
    for image in page.all("img"):
        kind, data = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert len(image["alt"]) > 20
    assert not re.search(r"url\(|@import|(src|href)=\"(?!data:|#)", (out / "report.html").read_text())


def test_page_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all("scope" in head for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 11
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [link["href"].removeprefix("#") for link in page.all("a")]
    assert links
    assert set(links) <= targets


def test_page_says_what_was_found(page):
    text = " ".join(page.text)
    for part in (
        "0.712",
        "-0.011 to 0.033",
        "0.004",
        "0.138",
        "0.062",
        "0.812",
        "3,371,024",
        "1.250",
        "majority (the most common training grade)",
        "AP",
        "0.123",
        "On 6 validation photographs with masks",
        "for want of a test photograph",
        "overlap by an IoU of 0.5",
        "0.432",
        "0.414",
        "0.207 to 0.707",
        "0.321",
        "0.400 of 27",
        "8 to 16",
        "truncated <JPEG> & more",
        "not a diagnosis",
        "grade 4",
        "label_fraction",
    ):
        assert part in text, part
    assert "nan" not in text.lower().replace("explanat", "")


def test_page_warns_where_no_two_photographs_are_of_one_patient(run, tmp_path):
    root = run["leaderboard"].parent
    folder = tmp_path / "evaluate"
    shutil.copytree(root / "figures", folder / "figures")
    shutil.copy(root / "leaderboard.csv", folder)
    table = pd.read_csv(folder / "leaderboard.csv")
    for patients, warned in ((table["n"] - 1, False), (table["n"], True)):
        table.assign(patients=patients).to_csv(folder / "leaderboard.csv", index=False)
        page = Page("title", "notice")
        add_leaderboard(page, folder / "leaderboard.csv")
        assert ("two eyes of one person may be in both training and test" in page.render()) == warned


def test_costs_are_shown_only_where_one_is_known(run, tmp_path):
    folder = tmp_path / "evaluate"
    shutil.copytree(run["leaderboard"].parent / "figures", folder / "figures")
    table = pd.read_csv(run["leaderboard"])
    for known in (True, False):
        unknown = {} if known else dict.fromkeys(("parameters", "peak_memory_gb"))
        table.assign(**unknown).to_csv(folder / "leaderboard.csv", index=False)
        page = Page("title", "notice")
        add_leaderboard(page, folder / "leaderboard.csv")
        assert ("Cost of a training" in page.render()) == known
        assert page.render().count("<table>") == 2 + known


def test_the_detector_is_reported_on_test_photographs_where_there_are_some(run, tmp_path):
    metrics = json.loads(run["lesion_metrics"].read_text())
    test = metrics["val"] | {"photographs": 1, "MA": metrics["val"]["MA"] | {"AP50": 0.987}}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(metrics | {"test": test, "rule": "centre"}))
    (tmp_path / "verdicts.png").write_bytes(run["lesion_metrics"].with_name("verdicts.png").read_bytes())
    make_report(**run | {"lesion_metrics": path}, out=tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    for part in (
        "On 1 test photograph with masks",
        "on 6 validation photographs.",
        "0.987",
        "its centre lies",
    ):
        assert part in text, part
    assert "too good" not in text


def test_where_nothing_looked_for_lesions_the_page_says_nothing_of_them(run, tmp_path):
    without = dict.fromkeys(("lesions", "detector_metrics", "lesion_metrics"))
    make_report(**run | without | {"patches_statistics": []}, out=tmp_path)
    text = (tmp_path / "report.html").read_text()
    titles = re.findall(r"<h2[^>]*>([^<]+)", text)
    assert "Crops" in titles
    assert not [title for title in titles if "esion" in title or title == "Patches"]
    assert not {"lesion_sheet.png", "froc.png"} & {path.name for path in tmp_path.iterdir()}


def test_same_inputs_same_bytes_and_old_cards_go(run, out, tmp_path):
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards/deleted.md").write_text("an experiment that is no more")
    make_report(**run, out=tmp_path)
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert again == {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_nothing_of_this_machine_is_written(run, out):
    for path in (*out.rglob("*.md"), out / "report.html", out / "input.csv"):
        assert str(Path(run["index"]).parent) not in path.read_text()


def test_missing_inputs_are_named(run, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json: .*run the stage"):
        make_report(**run | {"detector_metrics": Path("nowhere.json")}, out=tmp_path)
    with pytest.raises(UserError, match=r"gone.json: .*run the stage"):
        make_report(**run | {"lesion_metrics": Path("gone.json")}, out=tmp_path)
    with pytest.raises(UserError, match=r"nowhere.csv: "):
        make_report(**run | {"leaderboard": Path("nowhere.csv")}, out=tmp_path)
    alone = tmp_path / "leaderboard.csv"
    alone.write_text(run["leaderboard"].read_text())
    with pytest.raises(UserError, match=r"leaderboard.png: no such file"):
        make_report(**run | {"leaderboard": alone}, out=tmp_path)
    some = tmp_path / "metrics.json"
    some.write_text(json.dumps({"majority": json.loads(run["metrics"].read_text())["majority"]}))
    with pytest.raises(UserError, match="lacks the experiment good"):
        make_report(**run | {"metrics": some}, out=tmp_path)
