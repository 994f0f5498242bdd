"""The command line on small models: what it prints and writes."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.clpi.conftest import SIDE
from timm.models.densenet import DenseNet

from drgrade.clpi import tool
from drgrade.clpi.arguments import SPLIT, add_arguments
from drgrade.clpi.tool import panels, read_list, run
from drgrade.errors import UserError
from drgrade.grading.base import Photographs
from drgrade.grading.models import load_model
from drgrade.images.contrast import without_local_median
from drgrade.images.crop import centre_square_crop

FLAGS = ["-a", "DenseNet121", "--infer-classdim", "5"]


def arguments(*texts: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(text) for text in texts])


def photograph(seed: int, width: int = 170, height: int = 140) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def listed(tmp_path, monkeypatch) -> Path:
    """A list of two photographs and one that is missing; the last line has no newline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("a.b", "c"):
        Image.fromarray(photograph(len(name))).save(tmp_path / f"images/{name}.png")
    (tmp_path / "list.csv").write_text("images/a.b.png\nimages/none.png\nimages/c.png")
    return Path("list.csv")


def test_the_published_call_prints_and_writes_predictions(model, listed, capsys):
    folder = model()
    call = ["infer", *FLAGS, "--resume-from", folder, "--infer-file", listed, "--loss-type", "ce", "-d", "x"]
    run(arguments(*call))
    table = pd.read_csv("clpi_predictions.csv")
    lesions = ["lesion_MA", "lesion_HE", "lesion_EX_SE"]
    grades = [f"p{grade}" for grade in range(5)]
    assert list(table) == ["path", "pred", *grades, "score", *lesions, "error"]
    assert table["path"].tolist() == ["images/a.b.png", "images/none.png", "images/c.png"]
    assert table["error"].fillna("").tolist() == ["", "no such file or directory", ""]
    assert table.iloc[1, 1:-1].isna().all()
    read = table.iloc[[0, 2]]
    crops = [without_local_median(centre_square_crop(photograph(seed), 2 * SIDE)[0]) for seed in (3, 1)]
    grader = load_model(folder)
    output = grader.predict(Photographs(np.stack(crops), pd.DataFrame({"row": [0, 1]})))
    np.testing.assert_allclose(read[grades], output.probabilities, atol=1e-5)
    assert read["pred"].tolist() == output.probabilities.argmax(1).tolist()
    np.testing.assert_allclose(read["score"], output.probabilities @ np.arange(5), atol=1e-5)
    assert read[lesions].to_numpy().min() > 0
    assert read[lesions].to_numpy().max() <= 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["pred"]
    assert [line.split() for line in lines[1:]] == [
        ["images/a.b.png", str(output.probabilities[0].argmax())],
        ["images/none.png", "<NA>"],
        ["images/c.png", str(output.probabilities[1].argmax())],
    ]
    with pytest.raises(UserError, match=r"list\.csv: 1 photographs could not be read: no such file"):
        run(arguments(*call, "--strict"))


def test_lesion_columns_are_the_largest_probabilities_of_a_cell(model, listed):
    grader = load_model(model())
    table = tool.infer(grader, ["images/c.png"])
    crop = without_local_median(centre_square_crop(photograph(1), 2 * SIDE)[0])
    batch = torch.from_numpy(grader.preprocess.scaled(crop[None])[[0]] / 255).float().permute(0, 3, 1, 2)
    maps = grader.network.encoder.eval().lesions.maps(batch)
    expected = maps[0, 1:].amax((1, 2)).detach().numpy()
    np.testing.assert_allclose(table.iloc[0, 8:11].to_numpy(float), expected, rtol=1e-4)


def test_heat_maps_are_three_panels_and_their_values(model, listed):
    run(arguments("cam", *FLAGS, "--resume-from", model(), "--infer-file", listed))
    assert sorted(path.name for path in Path("cam_heatmaps").iterdir()) == [
        "a.npy",
        "a.png",
        "c.npy",
        "c.png",
    ]
    found = cv2.imread("cam_heatmaps/a.png")
    side = 2 * SIDE
    assert found.shape == (side, 3 * side, 3)
    plain = centre_square_crop(photograph(3), side)[0]
    np.testing.assert_array_equal(found[:, :side], plain[..., ::-1])
    assert np.load("cam_heatmaps/a.npy").shape == (1, 1)
    assert not found[:, side:].any()  # one cell is a constant map


def test_panels_show_the_stretched_map_and_its_product_with_the_photograph():
    values = np.array([[-1.0, 0.0], [1.0, 3.0]], np.float32)
    image = photograph(0, 64, 64)
    found = panels(image, values)
    heat = cv2.resize((values + 1) / 4 * 255, (64, 64), interpolation=cv2.INTER_LANCZOS4)
    assert np.abs(found[:, 64:128, 1] - heat.clip(0, 255)).max() <= 0.51
    product = image[..., ::-1] * heat[..., None] / 255
    assert np.abs(found[:, 128:] - product.clip(0, 255)).max() <= 0.51
    assert not panels(image, np.full((2, 2), 0.3, np.float32))[:, 64:].any()


def test_two_photographs_of_one_name_are_refused(model, listed):
    Path("same.csv").write_text("images/a.b.png\nother/a.png\n")
    call = ["cam", "--resume-from", model(), "--infer-file", "same.csv"]
    with pytest.raises(UserError, match=r"2 photographs would be drawn to cam_heatmaps/a\.png"):
        run(arguments(*call))


def test_lists(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xef\xbb\xbfa b,c.png\r\n\n  d.png  ")
    assert read_list(path) == ["a b,c.png", "d.png"]
    path.write_text("\n\n")
    with pytest.raises(UserError, match="names no photograph"):
        read_list(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text"):
        read_list(path)
    with pytest.raises(UserError, match="no such file"):
        read_list(tmp_path / "none.csv")


def test_models_of_other_graders_are_refused(tmp_path, monkeypatch):
    from drgrade.grading.majority import Majority, Params
    from drgrade.params import Crop

    grader = Majority(Params(), Crop())
    monkeypatch.setattr(grader, "facts", lambda: {"grade": 0})
    grader.save(tmp_path)
    monkeypatch.setattr(Majority, "rebuild", lambda *_: None)
    with pytest.raises(UserError, match="a model of the grader majority, not clpi; use drgrade predict"):
        tool.grader_in(tmp_path, "clpi_densenet121")


def test_kappa_on_messidor2_is_that_of_the_listed_part(model, tmp_path, monkeypatch, capsys):
    root = tmp_path / "messidor2"
    (root / "IMAGES").mkdir(parents=True)
    monkeypatch.setenv("DRGRADE_MESSIDOR2_ROOT", str(root))
    names, grades = [f"IM{number:06}" for number in range(8)], [0, 1, 2, 3, 4, 0, 2, 1]
    for seed, name in enumerate(names):
        Image.fromarray(photograph(seed, 150, 130)).save(root / f"IMAGES/{name}.JPG")
    lines = [f"{name}.jpg,{grade},0,1" for name, grade in zip(names, grades, strict=True)]
    header = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable"
    (root / "messidor_data.csv").write_text("\n".join([header, *lines]))
    split = tmp_path / "split.csv"
    parts = ["test", "test", "train", "test", "val", "test", "test", "train"]
    split.write_text("\n".join(["image_id,split", *(f"{n},{p}" for n, p in zip(names, parts, strict=True))]))
    predicted = {name: number % 5 for number, name in enumerate(names)}

    def infer(_, paths):
        return pd.DataFrame({"pred": pd.array([predicted[path.stem] for path in paths], "Int64")})

    folder, out = model(), tmp_path / "out.csv"
    monkeypatch.setattr(tool, "infer", infer)
    run(arguments("evaluate", "--resume-from", folder, "--split", split, "--out", out))
    table = pd.read_csv(out)
    tested = [place for place, part in enumerate(parts) if part == "test"]
    assert table["image_id"].tolist() == [names[place] for place in tested]
    assert table["grade"].tolist() == [grades[place] for place in tested]
    from sklearn.metrics import cohen_kappa_score

    expected = cohen_kappa_score(table["grade"], table["pred"], weights="quadratic")
    assert capsys.readouterr().out.startswith(f"test  QWK {expected:.4f} (")
    split.write_text("image_id,split\nother,test\n")
    with pytest.raises(UserError, match="no graded photograph of the part test"):
        run(arguments("evaluate", "--resume-from", folder, "--split", split))


def test_the_default_split_is_the_one_without_overlaps():
    assert (Path(__file__).parents[2] / SPLIT).is_file()


def test_weights_of_a_densenet_become_start_weights(tiny, tmp_path, monkeypatch):
    dense = DenseNet(*tiny)
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    monkeypatch.setattr(tool, "create_encoder", lambda *_: tool.Encoder(tiny))
    out = tmp_path / "start.safetensors"
    run(arguments("convert", tmp_path / "dense.pth", "--out", out))
    found = load_file(out)
    assert found.keys() == tool.Encoder(tiny).state_dict().keys()
    assert torch.equal(found["trunk.norm5.weight"], dense.features.norm5.weight)
    torch.save({"features.conv0.weight": torch.zeros(1, 3, 7, 7)}, tmp_path / "dense.pth")
    with pytest.raises(UserError, match=r"dense\.pth: features\.\S+ does not fit"):
        run(arguments("convert", tmp_path / "dense.pth", "--out", out))


def test_a_released_folder_becomes_a_model(tmp_path, monkeypatch, model):
    grader = load_model(model())
    monkeypatch.setattr(tool, "read_released", lambda folder, encoder: grader)
    (tmp_path / "released").mkdir()
    run(arguments("convert", tmp_path / "released", "--out", tmp_path / "converted"))
    again = load_model(tmp_path / "converted").network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in grader.network.state_dict().items())


@pytest.mark.parametrize(
    "wrong", [["-a", "ResNet50"], ["--infer-classdim", "2"], ["--loss-type", "mse"]], ids=str
)
def test_other_networks_and_numbers_of_grades_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        arguments("infer", "--resume-from", "x", "--infer-file", "y", *wrong)
    assert "invalid choice" in capsys.readouterr().err
