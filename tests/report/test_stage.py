import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.images.dataset import CroppedDataset
from drgrade.report.leaderboard import add_leaderboard
from drgrade.report.page import Page
from drgrade.report.stage import make_report

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
def out(run, values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make_report(run, values, folder)
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
        "dataset_cards/demo.md",
        "error_sheet.png",
        "froc.png",
        "heat_maps/cam.png",
        "input.csv",
        "lesion_sheet.png",
        "model_cards/good.md",
        "model_cards/majority.md",
        "params.yaml",
        "report.html",
        "worst_sheet.png",
    ]


def without_rows(run, folder, *names):
    """The inputs with tables of the stage evaluate that have only a header."""
    shutil.copytree(run.evaluated, folder)
    for name in names:
        (folder / name).write_text((folder / name).read_text().splitlines()[0] + "\n")
    return replace(run, evaluated=folder)


def test_external_tests_are_on_the_page_and_only_then(run, values, out, page, tmp_path):
    assert "other_site" in page.text
    assert "0.088" in page.text
    assert page.text.count("0.735") == 2, "QWK with fitted thresholds, here and in the leaderboard"
    make_report(without_rows(run, tmp_path / "evaluate", "external.csv"), values, tmp_path / "out")
    assert "On other datasets" not in (tmp_path / "out/report.html").read_text()
    assert "On other datasets" in (out / "report.html").read_text()


def test_sections_are_in_an_order_that_a_clinician_can_read(page):
    """What the models are worth first, how they were made last."""
    links = [link["href"].removeprefix("#") for link in page.all("a")]
    expected = [
        "leaderboard", "referable-or-not", "probabilities-and-doubt", "confusion", "subgroups",
        "on-other-datasets", "examples-by-grade", "what-the-model-looks-at", "worst-errors",
        "learning-curves", "input-problems", "detected-lesions", "lesion-detector", "patches", "compute",
        "model-cards", "dataset-cards", "parameters",
    ]  # fmt: skip
    assert [link for link in links if "/" not in link] == expected


def test_the_first_box_says_it_in_plain_words(page):
    text = " ".join(page.text)
    box = text[text.index("In short") : text.index("Leaderboard")]
    for part in (
        "Data: 7 graded photographs of the dataset demo: 3 of 3 patients for training, 2 of 2 patients for "
        "validation, 2 of 2 patients for testing.",
        "Best on the validation photographs: good (grader finetune, encoder tf_efficientnet_lite0, start "
        "weights: lesion_contrastive pretraining on demo",
        "On 7 test photographs of 4 patients, its quadratic weighted kappa is 0.71 (95 % interval 0.61 to ",
        "71 of 100 grades are exactly right",
        "chosen on validation photographs (specificity of at least 0.87): it finds 88 of 100 referable test "
        "photographs (95 % interval 50 to 94), and refers 19 of 100 others as well (0 to 75).",
        "not a diagnosis",
    ):
        assert part in box, part


def test_the_worst_errors_are_those_of_the_best_experiment(page):
    text = " ".join(page.text)
    assert "Wrongly graded test photographs of good," in text
    assert "3.250" in text
    assert "0.438" in text
    assert not {"im_6"} & set(page.text), "an error of another experiment"


def test_a_run_without_validation_photographs_says_so(run, values, tmp_path):
    other = without_rows(
        run, tmp_path / "evaluate", "operating.csv", "sets.csv", "errors.csv", "learning_curves.csv"
    )
    metrics = json.loads((run.evaluated / "metrics.json").read_text())
    without = {name: entry | {"val_qwk": None} for name, entry in metrics.items()}
    (other.evaluated / "metrics.json").write_text(json.dumps(without))
    make_report(other, values, tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    assert "Highest on the test photographs: good" in text
    assert "its figures are a little too good" in text
    assert text.count("Nothing was fitted") == 4, "in two sections and two model cards"
    for part in ("it finds", 'id="learning-curves"', "ROC curves of referable DR"):
        assert part not in text, part


def test_two_datasets_are_counted_apart(run, values, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(run.graded.folder, folder)
    own = CroppedDataset("own", folder)
    make_report(replace(run, graded=own), values, tmp_path / "out")
    counts = pd.read_csv(tmp_path / "out/input.csv")
    assert counts.groupby("dataset")["rows"].sum().to_dict() == {"demo": 24, "own": 24}


def test_every_row_is_counted(run, out):
    counts = pd.read_csv(out / "input.csv", keep_default_na=False)
    for name in ("index", "crops"):
        length = len(pd.read_parquet(run.graded.crops_file if name == "crops" else run.graded.index_file))
        assert counts.loc[counts["table"] == name, "rows"].sum() == length == 12
    missing = counts[(counts["table"] == "index") & (counts["status"] == "missing")]
    assert missing["rows"].tolist() == [2]
    assert missing["reason"].tolist() == ["no photograph for this label"]
    ok = counts[(counts["table"] == "crops") & (counts["status"] == "ok")]
    assert dict(zip(ok["subset"], ok["rows"], strict=True)) == {"grading": 7, "segmentation": 1}


def test_page_stands_alone(out, page):
    for tag in ("script", "link", "iframe", "object"):
        assert not page.all(tag)
    assert len(page.all("img")) == 14
    starts = {"data:image/png;base64": b"\x89PNG", "data:image/jpeg;base64": b"\xff\xd8"}
    for image in page.all("img"):
        kind, data = image["src"].split(",")
        assert base64.b64decode(data).startswith(starts[kind])
        assert len(image["alt"]) > 20
    assert (out / "report.html").stat().st_size < 5_000_000
    text = (out / "report.html").read_text()
    assert not re.search(r"url\(|@import|(src|href)=\"(?!data:|#|\.\./evaluate/leaderboard\.html\")", text)


def test_page_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all("scope" in head for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 17
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = {link["href"] for link in page.all("a")}
    assert links - {f"#{target}" for target in targets} == {"../evaluate/leaderboard.html"}
    assert len(links) > 2


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
    assert not re.search(r"\bnan\b", text.lower())


def test_page_warns_where_no_two_photographs_are_of_one_patient(run):
    table = pd.read_csv(run.evaluated / "leaderboard.csv")
    for patients, warned in ((table["n"] - 1, False), (table["n"], True)):
        page = Page("title", "notice")
        add_leaderboard(page, table.assign(patients=patients), run.evaluated / "figures")
        assert ("two eyes of one person may be in both training and test" in page.render()) == warned


def test_the_detector_is_reported_on_test_photographs_where_there_are_some(run, values, tmp_path):
    metrics = json.loads(run.lesion_metrics.read_text())
    test = metrics["val"] | {"photographs": 1, "MA": metrics["val"]["MA"] | {"AP50": 0.987}}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(metrics | {"test": test, "rule": "centre"}))
    (tmp_path / "verdicts.png").write_bytes(run.lesion_metrics.with_name("verdicts.png").read_bytes())
    make_report(replace(run, lesion_metrics=path), values, tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    for part in (
        "On 1 test photograph with masks",
        "on 6 validation photographs.",
        "0.987",
        "its centre lies",
    ):
        assert part in text, part
    assert "too good" not in text


def test_where_nothing_looked_for_lesions_the_page_says_nothing_of_them(run, values, tmp_path):
    without = dict.fromkeys(("lesions", "detector_metrics", "lesion_metrics"))
    make_report(replace(run, **without, patches=[]), values, tmp_path)
    text = (tmp_path / "report.html").read_text()
    titles = re.findall(r"<h2[^>]*>([^<]+)", text)
    assert "Examples by grade" in titles
    assert not [title for title in titles if "esion" in title or title == "Patches"]
    assert not {"lesion_sheet.png", "froc.png"} & {path.name for path in tmp_path.iterdir()}


def test_same_inputs_same_bytes_and_old_cards_go(run, values, out, tmp_path):
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards/deleted.md").write_text("an experiment that is no more")
    (tmp_path / "heat_maps").mkdir()
    (tmp_path / "heat_maps/deleted.png").write_text("an explanation that is no more")
    make_report(run, values, tmp_path)
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert again == {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_nothing_of_this_machine_is_written(run, out):
    for path in (*out.rglob("*.md"), out / "report.html", out / "input.csv"):
        assert str(run.evaluated.parent) not in path.read_text()


def test_missing_inputs_are_named(run, values, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json: .*run the stage"):
        make_report(replace(run, detector_metrics=Path("nowhere.json")), values, tmp_path)
    with pytest.raises(UserError, match=r"gone.json: .*run the stage"):
        make_report(replace(run, lesion_metrics=Path("gone.json")), values, tmp_path)
    with pytest.raises(UserError, match=r"nowhere/metrics.json: .*run the stage"):
        make_report(replace(run, evaluated=Path("nowhere")), values, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("figures/roc.png", r"roc.png: no such file; run the stage evaluate"),
        ("sets.csv", r"sets.csv: not a readable table .*run the stage evaluate"),
        ("subgroups.csv", r"subgroups.csv: not a readable table .*run the stage evaluate"),
    ],
)
def test_a_missing_file_of_the_stage_evaluate_is_named(name, message, run, values, tmp_path):
    folder = tmp_path / "evaluate"
    shutil.copytree(run.evaluated, folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        make_report(replace(run, evaluated=folder), values, tmp_path / "out")


def test_an_experiment_that_was_not_measured_is_named(run, values, tmp_path):
    folder = tmp_path / "evaluate"
    shutil.copytree(run.evaluated, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({"majority": metrics["majority"]}))
    with pytest.raises(UserError, match="lacks the experiment good"):
        make_report(replace(run, evaluated=folder), values, tmp_path / "out")
